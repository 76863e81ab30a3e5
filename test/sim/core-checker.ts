/**
 * What must hold, asserted after each step of each node:
 *
 * - election safety: one leader a term; one vote a node and term, over restarts;
 * - log matching: an entry (index, term) has one payload and one entry before it, wherever it is written;
 * - leader completeness: who becomes leader has every entry that was committed in an older term;
 * - state machine safety: what is committed at an index is the same everywhere, payload included; no node's commit falls;
 * - durability: when a leader commits, a quorum of its membership has the entry on its disks at that moment;
 * - reads: a read is answered with an index that no write acknowledged before the read was asked exceeds;
 * - bounds: queues and indexes stay within what types.ts, state.ts and progress.ts say of them.
 */
import { READS_MAX } from '../../server/safekeeper/core/leader.ts'
import { inflight } from '../../server/safekeeper/core/progress.ts'
import { isQuorum } from '../../server/safekeeper/core/quorum.ts'
import type { CoreState } from '../../server/safekeeper/core/state.ts'
import type { CoreEvent, Effect, LogIndex, Message, NodeId } from '../../server/safekeeper/core/types.ts'
import type { SimEntry, SimNode } from './core-node.ts'

export class Violation extends Error {
  override readonly name = 'Violation'
}

function demand(holds: boolean, what: () => string): asserts holds {
  if (!holds) throw new Violation(what())
}

export class CoreChecker {
  /** By index: what was committed there. Index 0 is no entry. */
  readonly committed: (SimEntry | undefined)[] = [undefined]
  /** By index: the term of the first node that told of it. */
  private readonly committedIn: number[] = [0]
  committedLast = 0
  leaders = 0
  readsAnswered = 0
  private readonly nodes: ReadonlyMap<NodeId, SimNode>
  private readonly leaderOf = new Map<number, NodeId>()
  private readonly votes = new Map<string, NodeId>()
  private readonly written = new Map<string, { value: string; before: number }>()
  private readonly appliedOf = new Map<NodeId, { process: number; index: number }>()
  private readonly reads = new Map<string, number>()

  constructor(nodes: ReadonlyMap<NodeId, SimNode>) {
    this.nodes = nodes
  }

  /** Before the effects are carried out. */
  beforeEffects(node: SimNode, event: CoreEvent, effects: readonly Effect[]): void {
    if (event.type === 'read') this.reads.set(`${node.id} ${event.id}`, this.committedLast)
    for (const effect of effects) {
      if (effect.type === 'role' && effect.role === 'leader') this.onLeader(node, effect.term)
      else if (effect.type === 'commit') this.onCommit(node, effect.index)
      else if (effect.type === 'readReady') this.onRead(node, effect.id, effect.index)
    }
    checkState(node.id, node.core!)
  }

  /** A message leaves. What waited for the disk when the process died never does. */
  onSend(from: NodeId, to: NodeId, message: Message): void {
    if (message.type === 'vote' && !message.pre) this.onVote(from, message.term, from)
    if (message.type === 'voteReply' && !message.pre && message.granted) this.onVote(from, message.term, to)
  }

  private onVote(voter: NodeId, term: number, candidate: NodeId): void {
    const key = `${voter} ${term}`
    const before = this.votes.get(key)
    demand(before === undefined || before === candidate, () => {
      return `${voter} votes for ${candidate} in term ${term}, but has voted for ${before}`
    })
    this.votes.set(key, candidate)
  }

  private onLeader(node: SimNode, term: number): void {
    const before = this.leaderOf.get(term)
    demand(before === undefined || before === node.id, () => {
      return `${node.id} leads in term ${term}, but so does ${before}`
    })
    if (before !== undefined) return
    this.leaderOf.set(term, node.id)
    this.leaders++
    for (let index = node.base.index + 1; index <= this.committedLast; index++) {
      // One whose votes were under way for long may lead in an older term than others have by now.
      if (this.committedIn[index]! >= term) break
      const entry = this.committed[index]
      demand(entry === undefined || node.entryAt(index as LogIndex)?.value === entry.value, () => {
        return `${node.id} leads in term ${term} without committed entry ${index} (${entry!.value})`
      })
    }
  }

  /** Called for each entry that goes into a log, with the term of the one before it. */
  onWrite(node: SimNode, entry: SimEntry, before: number): void {
    const key = `${entry.index} ${entry.term}`
    const known = this.written.get(key)
    if (known === undefined) {
      this.written.set(key, { value: entry.value, before })
      return
    }
    demand(known.value === entry.value, () => {
      return `${node.id} has ${entry.value} as entry ${entry.index} of term ${entry.term}, another has ${known.value}`
    })
    demand(known.before === before, () => {
      return `${node.id} has an entry of term ${before} before entry ${entry.index} of term ${entry.term}, another one of ${known.before}`
    })
  }

  private onCommit(node: SimNode, index: LogIndex): void {
    const applied = this.appliedOf.get(node.id)
    const from = applied?.process === node.process ? applied.index : node.snapshot.last.index
    demand(index > from, () => `${node.id}: commit falls from ${from} to ${index}`)
    this.appliedOf.set(node.id, { process: node.process, index })
    for (let at = Math.max(from, node.base.index) + 1; at <= index; at++) {
      const entry = node.entryAt(at as LogIndex)
      demand(entry !== undefined, () => `${node.id} commits entry ${at}, which it does not have`)
      const known = this.committed[at]
      demand(known === undefined || (known.value === entry.value && known.term === entry.term), () => {
        return `${node.id} commits ${entry.value} (term ${entry.term}) as entry ${at}, another has committed ${known!.value} (term ${known!.term})`
      })
      this.committed[at] = entry
      this.committedIn[at] ??= node.core!.term
    }
    this.committedLast = Math.max(this.committedLast, index)
    const core = node.core!
    if (core.role === 'leader') this.checkDurable(node, core, index)
  }

  /** A node that recovers had the entry, and may count until it was damaged. */
  private checkDurable(leader: SimNode, core: CoreState, index: LogIndex): void {
    const entry = leader.entryAt(index)!
    const holds = (id: NodeId) => {
      const node = this.nodes.get(id)
      if (node === undefined) return false
      const { disk } = node
      if (disk.recovering || disk.base.index >= index) return true
      return disk.log[index - disk.base.index - 1]?.value === entry.value
    }
    // A membership that was left since may have been the one that committed the entry.
    const ok = core.memberships.some(at => isQuorum(at.membership, holds))
    demand(ok, () => `${leader.id} commits entry ${index}, but no quorum has it on disk`)
  }

  private onRead(node: SimNode, id: number, index: LogIndex): void {
    const key = `${node.id} ${id}`
    const acknowledged = this.reads.get(key)!
    demand(index >= acknowledged, () => {
      return `${node.id} answers a read with entry ${index}, but ${acknowledged} was acknowledged before it`
    })
    this.reads.delete(key)
    this.readsAnswered++
  }
}

/** The invariants that stand on the fields of state.ts and progress.ts. */
export function checkState(id: NodeId, core: CoreState): void {
  const { log, flushed, commit, applied, verified } = core
  const text = () =>
    `${id}: base ${log.base.index} applied ${applied} commit ${commit} verified ${verified} flushed ${flushed} last ${log.last}`
  demand(flushed <= log.last && commit <= log.last && verified <= log.last, text)
  demand(log.base.index <= commit, text)
  demand(core.role === 'leader' || commit <= verified, text)
  if (core.installing === undefined)
    demand(applied <= Math.min(commit, flushed) && log.base.index <= applied, text)
  demand(core.memberships.length > 0, () => `${id} has no membership`)
  // As many lie above `applied` as the log has: after a restart that is the whole log.
  const [oldest, next] = core.memberships
  demand(
    core.installing !== undefined ||
      (oldest!.index <= applied && (next === undefined || next.index > applied)),
    () => `${text()}, but its memberships begin at ${oldest!.index} and go on at ${next?.index}`,
  )
  demand((core.lead !== undefined) === (core.role === 'leader'), text)
  if (core.lead === undefined) return
  demand(core.lead.reads.length <= READS_MAX, () => `${id}: ${core.lead!.reads.length} reads wait`)
  for (const progress of core.lead.progress.values()) {
    if (progress.id === id) continue
    const shown = () => `${id}: progress ${JSON.stringify(progress)} at ${text()}`
    demand(progress.match < progress.next && progress.next <= log.last + 1, shown)
    if (progress.state !== 'replicate') continue
    demand(progress.from < progress.next && inflight(progress) <= core.timing.inflightEntriesMax, shown)
  }
}
