/**
 * What is left of a cell in the folder of one of its safekeepers that is stopped: how far its log goes, what is known to be committed, who
 * the others were. Only reads. docs/consensus.md, "After a lost majority", says what follows from it; cell-recover.ts does it.
 */
import { join } from 'node:path'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import type { PeerNode } from '../../protocol/messages.ts'
import { dryDisk } from '../shared/dry-disk.ts'
import { corruptError, invalidError, isCorrupt, type PalimpsestError } from '../shared/errors.ts'
import type { Disk } from '../shared/seams.ts'
import { BACKUP_NOTE, type BackupNote, backupNote } from './backup-note.ts'
import { type CellOrigin, CellState, cellOrigin, decodeCommand } from './cell-state.ts'
import type { EntryId, HardState, NodeId, Term } from './core/types.ts'
import { CellLog } from './log/cell-log.ts'
import { LogInspection } from './log/inspect.ts'
import { type NodeFile, NodeFiles } from './node-files.ts'

export interface SurvivorTimeline {
  readonly timeline: TimelineId
  readonly name: string
  /** End of what is known to be committed, and of what is there. */
  readonly committedLsn: Lsn
  readonly endLsn: Lsn
  readonly epoch: number
  readonly writer: string
  /** Of the newest chunk; 0: none. */
  readonly lastWallTimeUs: number
}

export interface Survivor {
  readonly dir: string
  readonly nodeId: NodeId
  readonly cellId: string
  /** A recovery was begun on this folder and cut short. */
  readonly unfinished: boolean
  /** It had given up part of its log for damage, and had not got it again: acknowledged entries may be missing. */
  readonly recovering: boolean
  /** The highest that it has heard of; undefined: vote.json is damaged. */
  readonly term: Term | undefined
  readonly base: EntryId
  readonly last: EntryId
  /** All up to here is committed for certain; what lies beyond may be, and may have been acknowledged. */
  readonly knownCommitted: number
  /** The newest membership in its log. */
  readonly part: 'voter' | 'learner' | 'none'
  /** The other members of that. */
  readonly others: readonly PeerNode[]
  readonly timelines: readonly SurvivorTimeline[]
  readonly origin: CellOrigin | undefined
  /** Whether the log has that very entry, or had it before it was trimmed. */
  holds(entry: EntryId): boolean
}

/**
 * Reads the folder as a start would, and changes nothing in it.
 * @throws PalimpsestError `invalid` for a folder that is of no cell; `corrupt` for damage, with file, offset and index, and what to do
 */
export async function lookAtSurvivor(disk: Disk, dir: string): Promise<Survivor> {
  const files = new NodeFiles(dryDisk(disk), dir)
  const logDir = join(dir, 'log')
  const node = await cellNode(disk, files, dir)
  let hardState: HardState | undefined
  try {
    hardState = await files.loadVote()
  } catch (error) {
    if (!isCorrupt(error)) throw error
  }
  const inspection = await LogInspection.open(disk, logDir).catch(error => {
    throw isCorrupt(error) ? damageAdvice(dir, error) : error
  })
  try {
    if (inspection.damage !== undefined) throw damageAdvice(dir, new Error(inspection.damage.message))
    const found = await newestState(files, node, inspection)
    const { state } = found
    const snapshotIndex = found.isOfSnapshot ? state.last.index : 0
    // A log that was about to give way to a snapshot: what is beyond the snapshot is not of it.
    const last = state.last.index > inspection.last.index ? state.last : inspection.last
    const inLog = Math.max(inspection.knownCommitted, await backedUp(inspection, state))
    const knownCommitted = Math.min(Math.max(snapshotIndex, inLog), last.index)
    const committed = new Map<TimelineId, Lsn>()
    const note = () => {
      for (const { id, endLsn } of state.timelines.values()) committed.set(id, endLsn)
    }
    if (state.last.index >= knownCommitted) note()
    if (state.last.index < last.index)
      for await (const entry of inspection.read(state.last.index + 1)) {
        state.apply(entry)
        if (state.last.index === knownCommitted) note()
      }
    const { voters, outgoing = [], learners } = state.membership
    const { nodeId } = node
    const others = new Set([...voters, ...outgoing, ...learners])
    others.delete(nodeId)
    return {
      dir,
      nodeId,
      cellId: node.cellId,
      unfinished: node.unfinished !== undefined,
      recovering: node.recovering,
      term: hardState?.term,
      base: inspection.base,
      last,
      knownCommitted,
      part:
        voters.includes(nodeId) || outgoing.includes(nodeId)
          ? 'voter'
          : learners.includes(nodeId)
            ? 'learner'
            : 'none',
      others: [...others].map(id => ({ nodeId: id, address: '', zone: '', ...state.nodes.get(id) })),
      timelines: [...state.timelines.values()].map(timeline => ({
        timeline: timeline.id,
        name: timeline.name,
        committedLsn: committed.get(timeline.id) ?? timeline.startLsn,
        endLsn: timeline.endLsn,
        epoch: timeline.epoch,
        writer: timeline.writer,
        lastWallTimeUs: timeline.lastWallTimeUs,
      })),
      origin: cellOrigin(state),
      holds: entry =>
        entry.index <= inspection.base.index ||
        inspection.termAt(entry.index) === entry.term ||
        same(entry, last),
    }
  } catch (error) {
    throw isCorrupt(error) ? damageAdvice(dir, error as Error) : error
  } finally {
    await inspection.close()
  }
}

/** How far the backup went by what the log tells: what is backed up is committed, whether or not the entry that tells it is. */
async function backedUp(inspection: LogInspection, state: CellState): Promise<number> {
  let done = backupNote(state)?.done ?? 0
  for await (const { kind, payload } of inspection.read(state.last.index + 1)) {
    const command = kind === 'command' ? decodeCommand(payload) : undefined
    if (command?.do !== 'note' || command.key !== BACKUP_NOTE || command.value === null) continue
    done = Math.max(done, (command.value as unknown as BackupNote).done)
  }
  return done
}

/** Who the folder's node is, which must be in a cell and have a log. */
export async function cellNode(disk: Disk, files: NodeFiles, dir: string): Promise<NodeFile> {
  const node = await files.loadNode('member recover')
  if (node === undefined) throw invalidError(`${dir} is not the folder of a safekeeper: it has no node.json`)
  if (node.cellId === '')
    throw invalidError(
      `${node.nodeId} in ${dir} never came into a cell: it has nothing that could be recovered`,
    )
  if (!(await CellLog.exists(disk, join(dir, 'log'))))
    throw corruptError(
      `${join(dir, 'log')} is gone, and with it what this node had. Restore it, take another survivor, or restore the cell from its backup ("palimpsest backup restore")`,
    )
  return node
}

/** What to do about damage in a log that no other node can repair any more. */
export function damageAdvice(dir: string, why: Error): PalimpsestError {
  const said = why.message.replace(/\. Nothing was changed\..*$/s, '')
  return corruptError(
    `${said}. ${dir} is damaged, and nothing in it was changed. Keep it; take another survivor if there is one, or read the disk again ` +
      '(a copy made with ddrescue), or restore the cell from its backup ("palimpsest backup restore")',
    undefined,
    why,
  )
}

/** The cell's state as its members began with it. */
export function firstState({ seed }: NodeFile): CellState {
  const state = new CellState({ voters: seed.map(({ nodeId }) => nodeId), learners: [] })
  for (const { nodeId, address, zone } of seed) state.nodes.set(nodeId, { address, zone })
  return state
}

/** The state that a start would go on from: node-log.ts has the rules. */
async function newestState(
  files: NodeFiles,
  node: NodeFile,
  inspection: LogInspection,
): Promise<{ state: CellState; isOfSnapshot: boolean }> {
  const beyond: CellState[] = []
  let damage: unknown
  for (const index of (await files.listSnapshots()).reverse()) {
    try {
      const state = await files.loadSnapshot(index)
      if (inspection.termAt(state.last.index) === state.last.term) return { state, isOfSnapshot: true }
      beyond.push(state)
    } catch (error) {
      if (!isCorrupt(error)) throw error
      damage ??= error
    }
  }
  if (inspection.base.index === 0) return { state: firstState(node), isOfSnapshot: false }
  const oldest = beyond.at(-1)
  if (oldest !== undefined) return { state: oldest, isOfSnapshot: true }
  throw (
    damage ??
    corruptError(`${files.dir} has no snapshot, and its log begins after entry ${inspection.base.index}`)
  )
}

function same(a: EntryId, b: EntryId): boolean {
  return a.index === b.index && a.term === b.term
}

/** Raft's order of logs: what was committed anywhere is in the newest one, as far as any of them has it. */
export function isNewer(a: EntryId, b: EntryId): boolean {
  return a.term > b.term || (a.term === b.term && a.index > b.index)
}

/** The one with the newest log; of equals a voter that has lost nothing. Throws kind invalid unless all are of one cell. */
export function newestOf(survivors: readonly Survivor[]): Survivor {
  const [first] = survivors
  const stranger = survivors.find(({ cellId }) => cellId !== first!.cellId)
  if (stranger !== undefined)
    throw invalidError(
      `${first!.dir} is of cell ${first!.cellId}, ${stranger.dir} of cell ${stranger.cellId}: only folders of one cell can be compared`,
    )
  const weight = ({ part, recovering }: Survivor) => (part === 'voter' ? 2 : 0) + (recovering ? 0 : 1)
  return survivors.reduce((best, one) => {
    if (isNewer(one.last, best.last)) return one
    return same(one.last, best.last) && weight(one) > weight(best) ? one : best
  })
}
