/** `palimpsest log inspect` on a real disk. */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { TimelineId } from '../../../protocol/ids.ts'
import type { EntryId, LogIndex } from '../../../server/safekeeper/core/types.ts'
import { CellLog } from '../../../server/safekeeper/log/cell-log.ts'
import { workerPackRunner } from '../../../server/safekeeper/log/pack-pool.ts'
import { lockDirectory } from '../../../server/shared/dir-lock.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { nodeClock, nodeDisk } from '../../../server/shared/node-seams.ts'
import { LogEvents, type Made, noop, redo, T1, T2 } from '../../support/cell-log-rig.ts'

const CLI = fileURLToPath(new URL('../../../bin/palimpsest.js', import.meta.url))
const SEGMENT_BYTES = 64 * 1024

async function makeLog(data: string): Promise<void> {
  const dir = join(data, 'log')
  await CellLog.create({ disk: nodeDisk, dir, segmentBytes: SEGMENT_BYTES }, { index: 0, term: 0 } as EntryId)
  const events = new LogEvents()
  const { log } = await CellLog.open({
    disk: nodeDisk,
    clock: nodeClock,
    dir,
    log: silentLog,
    segmentBytes: SEGMENT_BYTES,
    reserveBytes: 4096,
    packs: workerPackRunner(),
    appliedTo: 0 as LogIndex,
    onFatal: error => events.fail(error),
  })
  events.attach(log)
  const lsn = new Map<TimelineId, number>()
  const made: Made[] = []
  for (let i = 1; i <= 300; i++) {
    const timeline = i % 3 === 0 ? T1 : T2
    const at = lsn.get(timeline) ?? 10_000
    made.push(i % 50 === 0 ? noop(i, 1 + (i >> 7)) : redo(i, 1 + (i >> 7), timeline, at, 1000))
    if (i % 50 !== 0) lsn.set(timeline, at + 1000)
  }
  const done = events.flushed(300)
  log.append(made)
  await done
  for (const entry of made) log.applied(entry)
  await log.packed()
  await log.close()
}

function run(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, 'log', 'inspect', ...args], {
    encoding: 'utf8',
  })
  return { code: status, out: stdout, err: stderr }
}

t.test('a stopped node', async t => {
  const data = mkdtempSync(join(tmpdir(), 'palimpsest-inspect-'))
  t.teardown(() => rmSync(data, { recursive: true, force: true }))
  await makeLog(data)
  const before = execFileSync('sh', ['-c', `ls -l --time-style=full-iso ${data}/log`], { encoding: 'utf8' })

  const whole = run('--data', data, '--verify')
  t.equal(whole.code, 0, whole.err)
  t.match(whole.out, /entries 1 to 300 \(term 3\)/)
  t.match(whole.out, /every CRC is right/)
  t.match(whole.out, /\.pack .*%/)

  const report = JSON.parse(run('--data', data, '--json', '--timeline', T1).out)
  t.match(report, {
    lastIndex: 300,
    flushedAtStop: 300,
    damage: [],
    timelines: [{ timeline: T1, beginLsn: 10_000 }],
  })
  t.ok(report.units.length > 3 && report.units[0].kind === 'pack' && report.units.at(-1).kind === 'segment')
  t.equal(report.units[0].beginLsn, 10_000)

  const lines = run('--data', data, '--entries', '--json').out.trim().split('\n')
  t.equal(lines.length, 300)
  t.match(JSON.parse(lines[1]!), { index: 2, kind: 'redo', timeline: T2, payloadBytes: 1000, isVoid: false })
  t.equal(run('--data', data, '--entries', '--timeline', T1).out.trim().split('\n').length, 98)

  t.equal(
    execFileSync('sh', ['-c', `ls -l --time-style=full-iso ${data}/log`], { encoding: 'utf8' }),
    before,
    'nothing was changed',
  )

  t.test('that is damaged', async t => {
    const pack = join(data, 'log', readdirSync(join(data, 'log')).find(name => name.endsWith('.pack'))!)
    const bytes = readFileSync(pack)
    bytes[200]! ^= 1
    writeFileSync(pack, bytes)
    t.equal(run('--data', data).code, 0, 'groups are not read')
    const damaged = run('--data', data, '--verify')
    t.equal(damaged.code, 1)
    t.match(damaged.out, `DAMAGE: log pack ${pack} is damaged at offset 64`)
    const listed = run('--data', data, '--entries')
    t.equal(listed.code, 1)
    t.match(listed.err, /damaged at offset 64/)
    t.ok(statSync(pack).size > 0)
  })
})

t.test('what cannot be inspected', async t => {
  const data = mkdtempSync(join(tmpdir(), 'palimpsest-inspect-'))
  t.teardown(() => rmSync(data, { recursive: true, force: true }))
  t.match(run('--data', data), { code: 1, err: /there is no safekeeper's log/ })
  t.match(run(), { code: 2 })
  t.match(run('--data', data, '--timeline', 'x'), { code: 2, err: /32 hexadecimal digits/ })
  await makeLog(data)
  const unlock = lockDirectory(data)
  t.match(run('--data', data), { code: 1, err: /is running \(process \d+\).*stop it/ })
  unlock()
  t.equal(run('--data', data).code, 0)
})
