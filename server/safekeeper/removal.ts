/**
 * Whether this node is still a member of its cell. One that was removed or replaced while it was away is not told: the others do not
 * subscribe at it any more, so not even its pre-votes reach them, and what it sees looks like a cell without a leader. So a node that hears
 * of no leader for seconds, and was answered by nodes that do, asks these for their status: who are the members, as of which entry?
 *
 * One of them is believed if it is a member in its own eyes, hears the leader, and has committed all up to the membership
 * that this node goes by: then what it says is newer. It has to be said twice. What is found out is told, in log, status and readiness, and nothing
 * is done about it: a wrong answer costs a wrong line, which the next answer takes back.
 *
 * A node that waits to be added is no member either, and has never been one: it has no entries yet.
 */
import { parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType, type PeerNode } from '../../protocol/messages.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import type { Driver } from './driver.ts'
import type { Members } from './members.ts'
import { nameOf } from './node-files.ts'
import type { DialPeer } from './peer-hello.ts'

/** An election takes less. */
const LEADERLESS_MS = 3000
const ASK_EVERY_MS = 2000
const ASK_MS = 3000
/** Nodes asked in one round, if the ones before are of no use. */
const ASKED_MAX = 3
/** So often must it be said. */
const TIMES = 2

export interface RemovalWatchOptions {
  readonly cellId: string
  readonly self: () => PeerNode
  readonly driver: Pick<Driver, 'leader' | 'membershipIndex' | 'lastIndex'>
  readonly members: Pick<Members, 'all'>
  readonly dial: DialPeer
  readonly clock: Clock
  readonly log: Log
}

export class RemovalWatch {
  private readonly options: RemovalWatchOptions
  /** When a leader was last known, or this began. */
  private ledMs: number
  private askDueMs = Number.NEGATIVE_INFINITY
  private asking = false
  private times = 0
  private problem_ = ''

  constructor(options: RemovalWatchOptions) {
    this.options = options
    this.ledMs = options.clock.monotonicMs()
  }

  /** What there is to say of it; empty: this node is a member, as far as it knows. */
  get problem(): string {
    return this.problem_
  }

  /** To be called twice a second or so. `led`: HOST:PORT of nodes of the cell that have just said that there is a leader. */
  look(led: readonly string[]): void {
    const { clock, driver, members, self } = this.options
    const nowMs = clock.monotonicMs()
    if (driver.leader !== undefined) {
      this.ledMs = nowMs
      this.takeBack()
      return
    }
    const wasMember = driver.lastIndex > 0 || members.all.has(self().nodeId)
    if (!wasMember || led.length === 0) return
    if (nowMs - this.ledMs < LEADERLESS_MS || nowMs < this.askDueMs || this.asking) return
    this.asking = true
    // Whoever calls has other work, which the silence of a node that is asked must not hold up.
    void this.askSome(led.slice(0, ASKED_MAX)).finally(() => {
      this.asking = false
      this.askDueMs = clock.monotonicMs() + ASK_EVERY_MS
    })
  }

  private async askSome(addresses: readonly string[]): Promise<void> {
    const { driver, self } = this.options
    for (const address of addresses) {
      const status = await this.ask(address)
      if (status === undefined || !this.isNewer(status)) continue
      // A leader may have been heard meanwhile.
      if (status.members.some(({ nodeId }) => nodeId === self().nodeId) || driver.leader !== undefined)
        this.takeBack()
      else this.isOut(status, address)
      return
    }
  }

  private async ask(address: string): Promise<CellStatusReply | undefined> {
    try {
      const connection = await this.options.dial(parseAddress(address))
      try {
        const { message } = await connection.request({ type: MessageType.CellStatus }, { deadlineMs: ASK_MS })
        return message
      } finally {
        connection.close()
      }
    } catch {
      // Another one may know.
      return undefined
    }
  }

  /** Whether what it says of the members is newer than what this node knows of them, or the same. */
  private isNewer(status: CellStatusReply): boolean {
    const { cellId, self, driver } = this.options
    return (
      status.cellId === cellId &&
      status.nodeId !== self().nodeId &&
      status.leader !== '' &&
      status.members.some(({ nodeId }) => nodeId === status.nodeId) &&
      status.commitIndex >= driver.membershipIndex
    )
  }

  private isOut({ nodeId: by, commitIndex, members }: CellStatusReply, address: string): void {
    const { self, driver, members: own, log } = this.options
    if (++this.times < TIMES) return
    const { nodeId, address: here } = self()
    const name = nameOf(nodeId)
    // A node that was there when it was removed has the entry that says so.
    const when = own.all.has(nodeId) ? `by entry ${commitIndex}` : `at entry ${driver.membershipIndex}`
    const namesake = members.find(other => nameOf(other.nodeId) === name)
    const how = namesake === undefined ? 'removed' : `replaced by ${namesake.nodeId}`
    const why = `${how} ${when}, as ${nameOf(by)} at ${address} says`
    const then =
      namesake === undefined
        ? `remove its folder, or add it anew with "palimpsest member add ${name}=${here}"`
        : 'remove its folder'
    const isNew = this.problem_ === ''
    this.problem_ = `this node is no longer a member of the cell (${why}): stop it, and ${then}`
    if (isNew) log.warn({ peer: address, entry: commitIndex }, this.problem_)
  }

  private takeBack(): void {
    this.times = 0
    if (this.problem_ === '') return
    this.problem_ = ''
    this.options.log.info('this node is a member of the cell again')
  }
}
