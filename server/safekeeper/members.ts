/**
 * Changing who is in the cell, on the leader: each change is several steps (who is there? its address into the state, a
 * learner, caught up, a voter), each of which may be done again, so that a change which a leader's death cut short is
 * taken up by saying it once more. docs/consensus.md, "Membership".
 */
import { parseAddress } from '../../protocol/dial.ts'
import { MessageType, type PeerNode } from '../../protocol/messages.ts'
import { invalidError, PalimpsestError, retryError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import { Turns } from '../shared/turns.ts'
import { errorOf } from './cell-timelines.ts'
import type { Membership, MembershipChange, NodeId } from './core/types.ts'
import { commandDraft } from './draft.ts'
import type { Driver } from './driver.ts'
import { nameOf } from './node-files.ts'
import { type DialPeer, sayHello } from './peer-hello.ts'

const VOTERS_MAX = 7
/** A learner so close to the end may vote: the rest comes within a heartbeat or two. */
const CAUGHT_UP_ENTRIES = 256
const POLL_MS = 20
const HELLO_MS = 5000
const STEP_MS = 30_000
/** For so long a change is asked for again that the core refuses. */
const REFUSED_MS = 5000
/** Catching up may have to carry all redo that is held. */
const CATCH_UP_MS = 24 * 3600_000

export interface MembersOptions {
  readonly driver: Driver
  readonly cellId: string
  /** The cell's first members, with whom every member's state begins. */
  readonly seed: readonly PeerNode[]
  readonly self: PeerNode
  readonly clock: Clock
  readonly log: Log
  readonly dial: DialPeer
  readonly isConnected: (node: NodeId) => boolean
}

export class Members {
  private readonly options: MembersOptions
  private readonly driver: Driver
  /** Of the newest membership in the log, and whether it is committed. */
  private latest: Membership
  private committed = false
  private readonly turns = new Turns()
  /** Names that are being replaced by themselves. */
  private readonly replacing = new Set<string>()
  private readonly noting = new Set<NodeId>()
  /** Names of all that this node has known as members: who asks again to remove one is told another thing than who mistypes. */
  private readonly known = new Set<string>()

  /** `earlier`: those in the log before. */
  constructor(options: MembersOptions, membership: Membership, earlier: readonly Membership[] = []) {
    this.options = options
    this.driver = options.driver
    this.latest = membership
    for (const one of [...earlier, membership]) this.know(one)
  }

  private know({ voters, outgoing = [], learners }: Membership): void {
    for (const id of [...voters, ...outgoing, ...learners]) this.known.add(nameOf(id))
  }

  get membership(): Membership {
    return this.latest
  }

  onMembership(membership: Membership, committed: boolean): void {
    this.latest = membership
    this.committed = committed
    this.know(membership)
  }

  /** All that are in the membership, in whichever way. */
  get all(): Set<NodeId> {
    const { voters, outgoing = [], learners } = this.latest
    return new Set([...voters, ...outgoing, ...learners])
  }

  private voterNamed(name: string): NodeId | undefined {
    return this.latest.voters.find(id => nameOf(id) === name)
  }

  private noMember(name: string): PalimpsestError {
    const names = [...this.all].map(nameOf).sort()
    return invalidError(`the cell has no member "${name}"; its members are ${names.join(', ')}`)
  }

  add(name: string, address: string): Promise<void> {
    return this.exclusive(async () => {
      const before = this.voterNamed(name)
      const node = await this.hello(name, address)
      if (before === node.nodeId) return
      if (before !== undefined)
        throw invalidError(
          `there is a member ${name} with another disk; use "member replace ${name} ${name}=${address}"`,
        )
      if (this.latest.voters.length >= VOTERS_MAX)
        throw invalidError(
          `the cell has ${this.latest.voters.length} members; at most ${VOTERS_MAX} make sense`,
        )
      await this.bring(node)
      await this.change({
        voters: [...this.latest.voters, node.nodeId],
        learners: this.latest.learners.filter(id => id !== node.nodeId),
      })
      this.options.log.info({ peer: node.nodeId, address }, 'member added')
    })
  }

  /** One that was a member and is none any more is no error: the answer to the first request may have been lost. */
  remove(name: string): Promise<void> {
    return this.exclusive(async () => {
      const id = this.voterNamed(name) ?? this.latest.learners.find(learner => nameOf(learner) === name)
      if (id === undefined) {
        if (this.known.has(name)) return
        throw this.noMember(name)
      }
      const voters = this.latest.voters.filter(voter => voter !== id)
      if (voters.length === 0) throw invalidError(`${name} is the last member`)
      if (id === this.options.self.nodeId) {
        // The new leader does it: the request is sent to it.
        await this.handOver()
        throw retryError('leadership was handed over before the removal: ask again')
      }
      await this.change({ voters, learners: this.latest.learners.filter(learner => learner !== id) })
      await this.forget(id)
      this.options.log.info({ peer: id }, 'member removed')
    })
  }

  replace(old: string, name: string, address: string): Promise<void> {
    return this.exclusive(async () => {
      const node = await this.hello(name, address)
      await this.putInPlace(old, node)
    })
  }

  private async putInPlace(old: string, node: PeerNode): Promise<void> {
    const out = this.voterNamed(old)
    if (out === node.nodeId || (out === undefined && this.latest.voters.includes(node.nodeId))) return
    if (out === undefined) throw this.noMember(old)
    if (out === this.options.self.nodeId) {
      await this.handOver()
      throw retryError('leadership was handed over before the replacement: ask again')
    }
    await this.bring(node)
    await this.change({
      voters: [...this.latest.voters.filter(voter => voter !== out), node.nodeId],
      learners: this.latest.learners.filter(id => id !== node.nodeId),
    })
    await this.forget(out)
    this.options.log.info({ peer: node.nodeId, instead: out }, 'member replaced')
  }

  transfer(name: string): Promise<void> {
    return this.exclusive(async () => {
      const to = this.voterNamed(name)
      if (to === undefined) throw invalidError(`the cell has no voting member ${name}`)
      if (to !== this.options.self.nodeId) await this.handOver(to)
    }, 'changing')
  }

  /** A node without a cell asked: if it is a member that lost its disk, it gets its place again. */
  onWaiting(node: PeerNode): void {
    const name = nameOf(node.nodeId)
    const old = this.voterNamed(name)
    if (!this.driver.isServing || old === undefined || old === node.nodeId) return
    if (this.options.isConnected(old) || this.replacing.has(name)) return
    this.replacing.add(name)
    this.options.log.warn(
      { peer: node.nodeId, instead: old },
      'a member came back with an empty disk: it is replaced by what it is now',
    )
    void this.exclusive(() => this.putInPlace(name, node))
      .catch(error =>
        this.options.log.warn(
          { err: error, peer: node.nodeId },
          'replacement not finished; it is tried again',
        ),
      )
      .finally(() => this.replacing.delete(name))
  }

  /** An earlier leader may have made a node a learner in the place of its namesake, and not lived to make it a voter. */
  resume(): void {
    for (const nodeId of this.latest.learners) {
      const known = this.driver.state.nodes.get(nodeId)
      if (known !== undefined && this.options.isConnected(nodeId)) this.onWaiting({ nodeId, ...known })
    }
  }

  /** A node said who it is: where members are is part of the state. */
  onSeen(node: PeerNode): void {
    if (!this.driver.isServing || !this.all.has(node.nodeId) || this.noting.has(node.nodeId)) return
    const known = this.driver.state.nodes.get(node.nodeId)
    if (known?.address === node.address && known.zone === node.zone) return
    this.noting.add(node.nodeId)
    this.note(node)
      .catch(() => {})
      .finally(() => this.noting.delete(node.nodeId))
  }

  private async note(node: PeerNode): Promise<void> {
    const { nodeId: id, address, zone } = node
    const applied = await this.driver.propose(commandDraft({ do: 'node', id, address, zone }))
    if (applied.void) throw errorOf(applied)
  }

  private async forget(id: NodeId): Promise<void> {
    await this.driver.propose(commandDraft({ do: 'node', id, address: null, zone: '' }))
  }

  private async hello(name: string, address: string): Promise<PeerNode> {
    const { cellId, self, dial } = this.options
    const reply = await sayHello(dial, parseAddress(address), { cellId, node: self }, HELLO_MS)
    const { node } = reply
    if (nameOf(node.nodeId) !== name) throw invalidError(`${address} is ${nameOf(node.nodeId)}, not ${name}`)
    if (reply.cellId !== '' && reply.cellId !== cellId)
      throw invalidError(
        `${name} at ${address} is in another cell, ${reply.cellId}: give it an empty data folder`,
      )
    return { ...node, address }
  }

  /** Makes it a learner and waits until it has caught up. */
  private async bring(node: PeerNode): Promise<void> {
    const { cellId, seed, dial, clock } = this.options
    const connection = await dial(parseAddress(node.address))
    try {
      // All states begin the same, or the log from its first entry on would not lead to the same.
      await connection.request({ type: MessageType.PeerSeed, cellId, members: seed }, { deadlineMs: STEP_MS })
    } finally {
      connection.close()
    }
    await this.note(node)
    if (!this.all.has(node.nodeId))
      await this.change({
        voters: this.latest.voters,
        learners: [...this.latest.learners, node.nodeId],
      })
    const until = clock.monotonicMs() + CATCH_UP_MS
    await this.poll(
      () => {
        const match = this.driver.matchOf(node.nodeId)
        return match > 0 && match + CAUGHT_UP_ENTRIES >= this.driver.commitIndex
      },
      until,
      `${nameOf(node.nodeId)} did not catch up`,
    )
  }

  /** Whether no change is under way. */
  private get isSettled(): boolean {
    return this.committed && this.latest.outgoing === undefined
  }

  private settled(untilMs: number): Promise<void> {
    return this.poll(() => this.isSettled, untilMs, 'another change of the membership did not come to an end')
  }

  /** Resolves when it is the committed membership. */
  private async change(goal: MembershipChange): Promise<void> {
    const until = this.options.clock.monotonicMs() + STEP_MS
    await this.settled(until)
    await this.begin(goal)
    await this.poll(
      () =>
        this.isSettled && same(this.latest.voters, goal.voters) && same(this.latest.learners, goal.learners),
      until,
      'a quorum did not take the new membership; is one reachable?',
    )
  }

  /** What the core refuses may be right a moment later: in a small cell a learner has caught up before it has an entry of this leader's. */
  private async begin(goal: MembershipChange): Promise<void> {
    const { clock } = this.options
    const until = clock.monotonicMs() + REFUSED_MS
    for (;;) {
      try {
        this.driver.change(goal)
        return
      } catch (error) {
        const isTransient = error instanceof PalimpsestError && error.kind === 'retry'
        if (!isTransient || this.driver.role !== 'leader' || clock.monotonicMs() > until) throw error
      }
      await clock.sleep(POLL_MS)
    }
  }

  /** Resolves when this node does not lead any more. */
  private async handOver(to?: NodeId): Promise<void> {
    const { clock, self } = this.options
    const others = this.latest.voters.filter(id => id !== self.nodeId)
    const best = to ?? others.sort((a, b) => this.driver.matchOf(b) - this.driver.matchOf(a))[0]
    if (best === undefined) throw invalidError('there is no other member to lead')
    this.driver.transfer(best)
    const until = clock.monotonicMs() + 5000
    while (this.driver.role === 'leader') {
      if (clock.monotonicMs() > until) throw retryError(`${nameOf(best)} did not take the lead in time`)
      await clock.sleep(POLL_MS)
    }
  }

  private async poll(done: () => boolean, untilMs: number, what: string): Promise<void> {
    const { clock } = this.options
    while (!done()) {
      if (this.driver.role !== 'leader')
        throw retryError('this node leads the cell no longer; ask again, the change goes on from where it is')
      if (clock.monotonicMs() > untilMs) throw retryError(what)
      await clock.sleep(POLL_MS)
    }
  }

  /**
   * One change after the other; who comes while one is under way waits. It begins with a membership that is certain: this node
   * leads still, and (unless `changing`) no change is under way. Or else "is no member" could be said of one that is, and
   * "done" of a change that may yet come to nothing.
   */
  private exclusive<T>(run: () => Promise<T>, when: 'settled' | 'changing' = 'settled'): Promise<T> {
    return this.turns.run(async () => {
      if (!this.driver.isServing) throw new PalimpsestError('retry', 'this node does not lead the cell')
      await this.driver.readBarrier()
      if (when === 'settled') await this.settled(this.options.clock.monotonicMs() + STEP_MS)
      return run()
    })
  }
}

function same(a: readonly NodeId[], b: readonly NodeId[]): boolean {
  return a.length === b.length && a.every(id => b.includes(id))
}
