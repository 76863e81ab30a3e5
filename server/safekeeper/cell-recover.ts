/**
 * Makes a cell of one member of what a survivor has, after the majority of its cell is lost for good. docs/consensus.md, "After a lost
 * majority", has why this is right and what it gives up.
 *
 *     1. node.json says that this is under way: from here on no start takes the folder, and the command goes on when it is run again
 *     2. vote.json: a term above all that this node has seen
 *     3. behind the log's end, in that term: the membership of this node alone; the others' addresses and the old cell's backup are
 *        forgotten; `recovered`, which parts writers and readers from what they had beyond this end
 *     4. a snapshot after that, so that whoever begins from it knows that the node is alone
 *     5. node.json has the new cell's id, and nothing is under way any more: that is the cell
 *
 * Nothing that was there is changed or removed. Each step may be done again: what is appended twice says the same twice.
 */
import { join } from 'node:path'
import { corruptError, invalidError, isCorrupt, retryError } from '../shared/errors.ts'
import { type Log, silentLog } from '../shared/log.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { BACKUP_NOTE } from './backup-note.ts'
import type { CellCommand, CellState } from './cell-state.ts'
import type { EntryId, HardState, LogIndex, NodeId, Term } from './core/types.ts'
import { commandDraft, ownEntry } from './draft.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'
import { type NodeFile, NodeFiles } from './node-files.ts'
import { openNodeLog } from './node-log.ts'
import { cellNode, damageAdvice, firstState } from './survivor.ts'

const READ_BYTES = 4 * 1024 * 1024
const WAIT_MS = 2

export interface RecoverOptions {
  readonly disk: Disk
  readonly clock: Clock
  /** The survivor's, stopped and locked. */
  readonly dir: string
  /** Of the cell that is made: another one. */
  readonly newCellId: string
  readonly log?: Log | undefined
  readonly segmentBytes?: number | undefined
}

export interface Recovered {
  readonly nodeId: NodeId
  readonly oldCellId: string
  /** The last entry that was there; all up to it is kept. */
  readonly last: EntryId
  /** The new cell's first term. */
  readonly term: Term
  readonly timelines: number
}

/**
 * Durable when it resolves. If it is cut short, the folder is as it was, or is taken by no start until this has been run again.
 * @throws PalimpsestError `invalid` if the node is no member of a cell of several; `corrupt` for damage, before anything is changed
 */
export async function recoverCell(options: RecoverOptions): Promise<Recovered> {
  const { disk, dir, newCellId } = options
  const files = new NodeFiles(disk, dir)
  let log: CellLog | undefined
  try {
    const node = await cellNode(disk, files, dir)
    const opened = await open(options, files, node)
    log = opened.log
    const { state } = opened
    await applyAll(log, state)
    const last = log.last
    const { nodeId, cellId: oldCellId } = node
    const { voters, outgoing = [], learners } = state.membership
    const others = [...voters, ...outgoing, ...learners].filter(id => id !== nodeId)
    if (others.length === 0 && node.unfinished === undefined)
      throw invalidError(`${nodeId} is the only member of its cell already: start it`)

    const vote = await loadVote(files)
    await files.saveNode({ ...node, unfinished: 'member recover' })
    const term = (Math.max(vote?.term ?? 0, last.term) + 1) as Term
    if (vote === undefined) await files.createVote()
    await files.saveVote({ term, votedFor: undefined })
    const entries = partingEntries(node, state, { index: (last.index + 1) as LogIndex, term }, options)
    await append(options, log, entries, opened.failed)
    await applyAll(log, state)
    await log.settleApplied()
    await files.saveSnapshot(state.last.index, state.encode())
    await log.close()
    log = undefined
    const self = selfOf(node, state)
    await files.saveNode({ version: 1, nodeId, cellId: newCellId, seed: [self], recovering: false })
    return { nodeId, oldCellId, last, term, timelines: state.timelines.size }
  } finally {
    await log?.close().catch(() => {})
    await files.close()
  }
}

async function open(
  { disk, clock, dir, log: logger = silentLog, segmentBytes }: RecoverOptions,
  files: NodeFiles,
  node: NodeFile,
): Promise<{ log: CellLog; state: CellState; failed: Promise<never> }> {
  const { promise: failed, reject } = Promise.withResolvers<never>()
  failed.catch(() => {})
  try {
    const { log, state } = await openNodeLog({
      files,
      logger,
      self: node.nodeId,
      isRecovering: false,
      open: {
        disk,
        clock,
        dir: join(dir, 'log'),
        log: logger,
        packs: 'off',
        ...(segmentBytes !== undefined && { segmentBytes }),
        onFatal: reject,
      },
      first: () => firstState(node),
      // A member would give up what is damaged, and fetch it from the others: there are none.
      recover: async why => {
        throw why
      },
    })
    return { log, state, failed }
  } catch (error) {
    if (isCorrupt(error)) throw damageAdvice(dir, error)
    throw error
  }
}

/** undefined: it cannot be read. Nobody who could hear a second vote of this node's is in the new cell, so that is no obstacle. */
async function loadVote(files: NodeFiles): Promise<HardState | undefined> {
  try {
    return await files.loadVote()
  } catch (error) {
    if (isCorrupt(error)) return undefined
    throw error
  }
}

/** Takes all of the log into the state: what this node has becomes what is committed. */
async function applyAll(log: CellLog, state: CellState): Promise<void> {
  while (state.last.index < log.lastIndex) {
    const from = (state.last.index + 1) as LogIndex
    for (const entry of await log.read(from, log.lastIndex, READ_BYTES)) {
      const result = state.apply(entry)
      log.applied(entry, result.void)
    }
  }
}

function selfOf({ nodeId, seed }: NodeFile, state: CellState): NodeFile['seed'][number] {
  const known = state.nodes.get(nodeId) ?? seed.find(one => one.nodeId === nodeId)
  return { nodeId, address: known?.address ?? '', zone: known?.zone ?? '' }
}

/** What parts the new cell from the old one, from entry `first` on. */
function partingEntries(
  node: NodeFile,
  state: CellState,
  first: EntryId,
  { newCellId, clock }: RecoverOptions,
): LogEntry[] {
  const { address, zone, nodeId } = selfOf(node, state)
  const commands: CellCommand[] = [
    // States of members to come begin with this node alone, and are to end the same.
    { do: 'node', id: nodeId, address, zone },
    ...[...state.nodes.keys(), ...node.seed.map(one => one.nodeId)]
      .filter((id, i, all) => id !== nodeId && all.indexOf(id) === i)
      .map(id => ({ do: 'node', id, address: null, zone: '' }) as const),
    // The new cell's backup is one of its own.
    { do: 'note', key: BACKUP_NOTE, value: null },
    recoveredCommand('survivor', node.cellId, newCellId, clock),
  ]
  const membership = { voters: [nodeId], learners: [] }
  return [
    ownEntry({ type: 'appendOwn', id: first, entry: { kind: 'membership', membership } }),
    ...commands.map((command, i) => commandEntry(command, first.index + 1 + i, first.term)),
  ]
}

/** What parts a cell from the one that it was made of; shared with `backup restore`. */
export function recoveredCommand(
  how: 'survivor' | 'backup',
  from: string,
  to: string,
  clock: Clock,
): CellCommand {
  return { do: 'recovered', how, from, to, wallTimeUs: Math.max(0, clock.wallTimeUs()) }
}

export function commandEntry(command: CellCommand, index: number, term: Term): LogEntry {
  return { ...commandDraft(command), index: index as LogIndex, term, dropped: false }
}

/** Durable when it resolves. */
async function append(
  { clock, dir }: RecoverOptions,
  log: CellLog,
  entries: readonly LogEntry[],
  failed: Promise<never>,
): Promise<void> {
  const end = entries.at(-1)!.index
  log.append(entries)
  while (log.flushed.index < end) {
    if (log.lastIndex < end)
      throw retryError(
        `there is no room on the disk of ${dir} (${log.lastError}): make some, and run the command again`,
      )
    await Promise.race([clock.sleep(WAIT_MS), failed])
  }
  if (log.termAt(end) !== entries.at(-1)!.term) throw corruptError(`${dir}: what was appended is not there`)
}
