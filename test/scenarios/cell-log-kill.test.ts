/**
 * A process that appends to the cell's log, cuts it and packs it, is killed at random moments, again and again: what it said was flushed
 * is there, with the right bytes, and what it said was cut is not. PALIMPSEST_KILLS sets how often (8 unless told).
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { crc32c } from '../../protocol/crc32c.ts'
import type { LogIndex } from '../../server/safekeeper/core/types.ts'
import { CellLog } from '../../server/safekeeper/log/cell-log.ts'
import { silentLog } from '../../server/shared/log.ts'
import { nodeClock, nodeDisk } from '../../server/shared/node-seams.ts'
import { chunk } from '../support/cell-log-rig.ts'

const KILLS = Number(process.env['PALIMPSEST_KILLS'] ?? 8)
const SEGMENT_BYTES = 256 * 1024
const CHILD = fileURLToPath(new URL('../support/cell-log-child.ts', import.meta.url))

function packsIn(dir: string): string[] {
  return existsSync(dir) ? readdirSync(dir).filter(file => file.endsWith('.pack')) : []
}

/** Runs a child until it is killed, `afterPack`: not before it has made a pack; what it said, line by line. Only whole lines count. */
async function runAndKill(dir: string, seed: number, ms: number, afterPack: boolean): Promise<string[]> {
  const before = new Set(packsIn(dir))
  const child = spawn(process.execPath, [CHILD, dir, String(SEGMENT_BYTES), String(seed)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  let ready: () => void = () => {}
  const flushing = new Promise<void>(resolve => {
    ready = resolve
  })
  child.stdout.on('data', (data: Buffer) => {
    text += data.toString()
    if (text.includes('flushed')) ready()
  })
  const ended = new Promise<number | null>(resolve => child.once('close', code => resolve(code)))
  const early = await Promise.race([flushing.then(() => undefined), ended])
  if (early !== undefined) throw new Error(`the process ended by itself, with ${early}`)
  while (afterPack && child.exitCode === null && packsIn(dir).every(file => before.has(file)))
    await new Promise(resolve => setTimeout(resolve, 10))
  await new Promise(resolve => setTimeout(resolve, ms))
  child.kill('SIGKILL')
  if ((await ended) !== null) throw new Error('the process ended by itself')
  return text.slice(0, text.lastIndexOf('\n')).split('\n')
}

t.test(`${KILLS} kills`, { timeout: 60_000 + KILLS * 10_000 }, async t => {
  const dir = join(mkdtempSync(join(tmpdir(), 'palimpsest-cell-log-')), 'log')
  t.teardown(() => rmSync(join(dir, '..'), { recursive: true, force: true }))
  let packs = 0
  for (let round = 1; round <= KILLS; round++) {
    const lines = await runAndKill(dir, round * 7919, Math.random() * 400, round % 2 === 0)
    let flushed = 0
    let term = 0
    // A cut that was asked for and not yet said to be done may or may not have happened.
    let cutTo = Number.POSITIVE_INFINITY
    for (const line of lines) {
      const [what, index = '', ofTerm = ''] = line.split(' ')
      if (what === 'open') {
        flushed = Number(index)
        term = Number(ofTerm)
      } else if (what === 'flushed') flushed = Math.max(flushed, Number(index))
      else if (what === 'cut') cutTo = Number(index)
      else if (what === 'cutDone') {
        flushed = Math.min(flushed, Number(index))
        cutTo = Number.POSITIVE_INFINITY
      }
    }
    flushed = Math.min(flushed, cutTo)
    const { log } = await CellLog.open({
      disk: nodeDisk,
      clock: nodeClock,
      dir,
      log: silentLog,
      segmentBytes: SEGMENT_BYTES,
      packs: 'off',
      appliedTo: 0 as LogIndex,
      onFatal: error => t.fail(error.message),
    })
    t.ok(log.lastIndex >= flushed, `kill ${round}: ${flushed} was flushed, ${log.lastIndex} is there`)
    let last = 0
    for (let at = 1; at <= log.lastIndex; ) {
      const entries = await log.read(at as LogIndex, log.lastIndex, 1 << 20)
      for (const { index, term: of, payload, payloadCrc } of entries) {
        const expected = chunk(index * 13 + of, payload.length)
        if (
          of < last ||
          of > term ||
          crc32c(payload, 0, payload.length) !== payloadCrc ||
          !expected.equals(payload)
        )
          t.fail(`entry ${index} of term ${of} is not what was appended`)
        last = of
      }
      at += entries.length
    }
    packs = Math.max(packs, log.stats().packs)
    await log.close()
  }
  t.ok(packs > 0, `${packs} packs were made meanwhile`)
})
