/** Appends to a cell's log in a process of its own, cuts and packs, until it is killed: DIR SEGMENT_BYTES SEED. Tells on stdout what is flushed. */
import type { EntryId, LogIndex } from '../../server/safekeeper/core/types.ts'
import { CellLog, type LogEntry } from '../../server/safekeeper/log/cell-log.ts'
import { PACK_AT_ONCE } from '../../server/safekeeper/log/pack-policy.ts'
import { workerPackRunner } from '../../server/safekeeper/log/pack-pool.ts'
import { silentLog } from '../../server/shared/log.ts'
import { nodeClock, nodeDisk } from '../../server/shared/node-seams.ts'
import { noop, redo, T1, T2 } from './cell-log-rig.ts'

const [dir, segmentBytes, seed] = process.argv.slice(2)
let state = Number(seed)
const below = (n: number) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 2 ** 32) * n)
}
const options = { disk: nodeDisk, dir: dir!, segmentBytes: Number(segmentBytes) }
if (!(await CellLog.exists(nodeDisk, dir!))) await CellLog.create(options, { index: 0, term: 0 } as EntryId)
const { log } = await CellLog.open({
  ...options,
  clock: nodeClock,
  log: silentLog,
  packs: workerPackRunner(),
  packPolicy: PACK_AT_ONCE,
  appliedTo: 0 as LogIndex,
  onFatal: error => {
    throw error
  },
})
for (let at = log.base.index + 1; at <= log.lastIndex; ) {
  for (const entry of await log.read(at as LogIndex, log.lastIndex, 1 << 20)) {
    // What was there is applied but for the newest, which may still be cut.
    if (entry.index <= log.lastIndex - 50) log.applied(entry)
    at = entry.index + 1
  }
}
// Each start is a term of its own.
const term = log.last.term + 1
log.onFlushed = id => process.stdout.write(`flushed ${id.index} ${id.term}\n`)
process.stdout.write(`open ${log.lastIndex} ${term}\n`)
for (;;) {
  if (below(40) === 0 && log.lastIndex > log.appliedIndex) {
    const after = log.appliedIndex + below(log.lastIndex - log.appliedIndex + 1)
    process.stdout.write(`cut ${after}\n`)
    await log.truncateAfter(after as LogIndex)
    process.stdout.write(`cutDone ${after}\n`)
  }
  const entries: LogEntry[] = []
  for (let n = 1 + below(8); n > 0; n--) {
    const index = log.lastIndex + entries.length + 1
    const timeline = below(2) === 0 ? T1 : T2
    entries.push(
      below(10) === 0 ? noop(index, term) : redo(index, term, timeline, index * 10, 1 + below(6000)),
    )
  }
  log.append(entries)
  while (log.queuedBytes > 200_000) await new Promise(setImmediate)
  if (below(4) === 0) {
    const to = Math.max(log.appliedIndex, log.flushed.index - 30)
    for (let at = log.appliedIndex + 1; at <= to; ) {
      const read = await log.read(at as LogIndex, to as LogIndex, 1 << 20)
      for (const entry of read) log.applied(entry)
      at += read.length
    }
  }
  if (below(3) === 0) await new Promise(setImmediate)
}
