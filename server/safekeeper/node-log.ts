/**
 * What a node finds on its disk when it starts: its log, and the newest snapshot of the cell's state that the log reaches.
 *
 * A log may end below a snapshot: damage has cut it, or a crash came between the snapshot of a leader and the emptying of the
 * log in its favour. Redo that somebody needs may lie below all snapshots but the oldest (snapshots.ts). So the state goes back as
 * far as the log does, and only where the log's beginning was trimmed and no snapshot is reached, the log begins anew after the
 * oldest, below which nobody needs anything.
 */
import { corruptError, invalidError, isCorrupt } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { CellState } from './cell-state.ts'
import type { EntryId, LogIndex, Term } from './core/types.ts'
import { CellLog, type CellLogOptions, type LogStart } from './log/cell-log.ts'
import { loadState } from './log/state-file.ts'
import type { NodeFiles } from './node-files.ts'

export interface NodeLog {
  readonly log: CellLog
  readonly start: LogStart
  readonly state: CellState
  /** Snapshots that are there, ascending; the log reaches all of them. */
  readonly kept: EntryId[]
  /** The oldest was lost to damage: see Snapshots.lostOldest. */
  readonly lostOldest: LogIndex | undefined
}

export interface NodeLogOptions {
  readonly files: NodeFiles
  readonly logger: Log
  readonly open: Omit<CellLogOptions, 'appliedTo' | 'acceptDamage'>
  /** Of the cell as it was seeded. */
  readonly first: () => CellState
  readonly self: string
  /** It is durable already that this node must not vote. */
  readonly isRecovering: boolean
  /** Makes it durable that this node must not vote: called before damaged entries (`why`) are set aside. */
  readonly recover: (why: Error) => Promise<void>
}

/** Throws kind corrupt for damage that nobody else could repair: of a node that is alone. */
export async function openNodeLog(options: NodeLogOptions): Promise<NodeLog> {
  const { files, logger, open, first } = options
  if (!(await CellLog.exists(open.disk, open.dir))) {
    // A crash came while the log was set aside.
    if (options.isRecovering && (await open.disk.exists(asideOf(open.dir)))) return beginEmpty(options)
    throw corruptError(
      `${open.dir} is gone, and with it what this node has acknowledged. Restore it, or empty ${files.dir} as a whole: the others of the ` +
        'cell, if there are any, then give it everything anew',
    )
  }
  const { kept, newest, lost } = await loadSnapshots(options)
  const { voters } = newest.membership
  const isAlone = voters.length === 1 && voters[0] === options.self
  const why = await whyUnusable(options, kept.length, lost)
  if (why !== undefined) {
    if (isAlone) throw why
    return startOver(options, why)
  }
  let opened = await openLog(options, newest.last.index, isAlone)
  const { base } = opened.log
  if (base.index > newest.last.index)
    // The snapshot that the log was emptied for is durable before: this is not what we left.
    throw invalidError(
      `${files.dir}: the log begins after entry ${base.index}, but the newest snapshot is of ${newest.last.index}`,
    )

  const beyond: EntryId[] = []
  while (kept.length > 0) {
    const last = kept[kept.length - 1]!
    if (opened.log.termAt(last.index) === last.term) break
    beyond.unshift(kept.pop()!)
  }
  const lostOldest = lost.find(({ index }) => index <= (kept[0]?.index ?? 0))?.index
  if (beyond.length === 0) return { ...opened, state: newest, kept, lostOldest }
  logger.warn(
    { lastIndex: opened.log.lastIndex, snapshots: beyond, base },
    'the log does not reach the newest snapshot',
  )
  if (kept.length === 0 && base.index > 0) {
    const oldest = beyond.shift()!
    await opened.log.reset(oldest)
    kept.push(oldest)
  } else {
    // What was applied is to be applied again: the log's index by timeline follows the state.
    await opened.log.close()
    opened = await openLog(options, kept.at(-1)?.index ?? 0, isAlone)
  }
  for (const { index } of beyond) await files.removeSnapshot(index)
  const last = kept.at(-1)
  const state = last === undefined ? first() : await files.loadSnapshot(last.index)
  return { ...opened, state, kept, lostOldest }
}

interface LostSnapshot {
  readonly index: LogIndex
  readonly error: Error
}

/**
 * Those that can be read, and the state of the newest; the others are removed if there is one to go on with, but for the oldest: see
 * Snapshots.lostOldest.
 */
async function loadSnapshots({
  files,
  logger,
  first,
}: NodeLogOptions): Promise<{ kept: EntryId[]; newest: CellState; lost: LostSnapshot[] }> {
  const kept: EntryId[] = []
  const lost: LostSnapshot[] = []
  let newest = first()
  for (const index of await files.listSnapshots())
    try {
      newest = await files.loadSnapshot(index)
      kept.push(newest.last)
    } catch (error) {
      if (!isCorrupt(error)) throw error
      lost.push({ index, error })
    }
  if (kept.length > 0)
    for (const { index, error } of lost) {
      logger.warn({ err: error }, 'a damaged snapshot of the cell is given up for others')
      const isOldest = index === lost[0]!.index && index < kept[0]!.index
      if (!isOldest) await files.removeSnapshot(index)
    }
  return { kept, newest, lost }
}

/** Why neither log nor snapshots can be begun with; undefined: they can. */
async function whyUnusable(
  { open }: NodeLogOptions,
  kept: number,
  lost: readonly LostSnapshot[],
): Promise<Error | undefined> {
  let base: EntryId
  try {
    base = (await loadState(open.disk, open.dir)).base
  } catch (error) {
    if (!isCorrupt(error)) throw error
    return error
  }
  // From its first entry on the log leads to the state without any snapshot.
  return kept === 0 && base.index > 0 ? lost[0]?.error : undefined
}

/** As a node with an empty log that must not vote before it has everything: the old log is kept under another name. */
async function startOver(options: NodeLogOptions, why: Error): Promise<NodeLog> {
  const { files, logger, open, recover } = options
  logger.error({ err: why }, 'the log cannot be begun with: it is set aside, and fetched from the others')
  await recover(why)
  await open.disk.remove(asideOf(open.dir))
  await open.disk.rename(open.dir, asideOf(open.dir))
  await open.disk.syncDir(files.dir)
  return beginEmpty(options)
}

function asideOf(dir: string): string {
  return `${dir}-damaged`
}

async function beginEmpty(options: NodeLogOptions): Promise<NodeLog> {
  const { files, open, first } = options
  await CellLog.create(open, { index: 0 as LogIndex, term: 0 as Term })
  for (const index of await files.listSnapshots()) await files.removeSnapshot(index)
  const opened = await openLog(options, 0, false)
  return { ...opened, state: first(), kept: [], lostOldest: undefined }
}

async function openLog(
  { logger, open, recover }: NodeLogOptions,
  appliedTo: number,
  isAlone: boolean,
): Promise<{ log: CellLog; start: LogStart }> {
  let why: Error
  const whole = { ...open, appliedTo: appliedTo as CellLogOptions['appliedTo'] }
  try {
    return await CellLog.open(whole)
  } catch (error) {
    if (isAlone || !isCorrupt(error)) throw error
    logger.error({ err: error }, 'part of the log is damaged: it is fetched from the others')
    why = error
  }
  await recover(why)
  return CellLog.open({ ...whole, acceptDamage: true })
}
