/**
 * How a node with an empty folder comes into a cell. It asks all others that it knows of who they are, again and again, until
 *
 * 1. one of them is in a cell that was seeded with this very node among its first members: then it is one;
 * 2. all of them have been reached, none is in a cell, and this node's name sorts first: then it makes the cell;
 * 3. a leader sends the seed: an operator adds the node, or it takes the place of its namesake that lost its disk.
 *
 * A node that finds any other in a cell never makes one. Taking part late in case 1 is safe: this incarnation has never voted.
 */
import { type Address, formatAddress, parseAddress } from '../../protocol/dial.ts'
import type { PeerHelloReply, PeerNode } from '../../protocol/messages.ts'
import { toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import { nameOf } from './node-files.ts'
import { type DialPeer, sayHello } from './peer-hello.ts'

const ASK_MS = 2000
const AGAIN_MS_MIN = 50
const AGAIN_MS_MAX = 500
/** A cell that is being made, or elects, looks for a moment as if its majority were lost. */
const LOST_MS = 5000

export interface Seed {
  readonly cellId: string
  /** The first members of the cell, this node among them unless it was added later. */
  readonly members: readonly PeerNode[]
}

export interface BootstrapOptions {
  readonly self: PeerNode
  /** The first members by name, this one among them; empty: wait to be added. */
  readonly peers: ReadonlyMap<string, Address>
  /** Other nodes to ask. */
  readonly join: readonly Address[]
  readonly clock: Clock
  readonly log: Log
  readonly dial: DialPeer
  readonly newCellId: () => string
  /** Aborted when a seed came meanwhile, or the node stops. */
  readonly stop: AbortSignal
}

/** Resolves with the cell that this node now belongs to; undefined if it was stopped. */
export async function findCell(options: BootstrapOptions): Promise<Seed | undefined> {
  const { self, peers, join, clock, log, stop } = options
  const name = nameOf(self.nodeId)
  const others = [...peers].filter(([other]) => other !== name)
  if (others.length === 0 && join.length === 0) return { cellId: options.newCellId(), members: [self] }
  /** Leaders that were named by others. */
  const hinted = new Map<string, Address>()
  /** Why each did not answer, when it was last said. */
  const reasons = new Map<string, string>()
  let said = ''
  let lostSinceMs: number | undefined
  for (let waitMs = AGAIN_MS_MIN; !stop.aborted; waitMs = Math.min(waitMs * 1.5, AGAIN_MS_MAX)) {
    const asked = await Promise.all(
      [...others.map(([, address]) => address), ...join, ...hinted.values()].map(address =>
        ask(options, address, reasons),
      ),
    )
    if (stop.aborted) return undefined
    const replies = asked.filter(reply => reply !== undefined)
    for (const reply of replies) {
      if (reply.seed.some(member => member.nodeId === self.nodeId))
        return { cellId: reply.cellId, members: reply.seed }
      if (reply.leaderAddress !== '') hinted.set(reply.leaderAddress, parseAddress(reply.leaderAddress))
    }
    const inCell = replies.find(reply => reply.cellId !== '')
    const names = new Set(replies.map(reply => nameOf(reply.node.nodeId)))
    let says: string
    const lost = inCell && lostMajority(inCell.cellId, name, [...peers.keys()], replies)
    if (lost === undefined) lostSinceMs = undefined
    else lostSinceMs ??= clock.monotonicMs()
    const isLost = lostSinceMs !== undefined && clock.monotonicMs() - lostSinceMs >= LOST_MS
    if (isLost) says = lost!
    else if (inCell !== undefined)
      says = replies.some(({ leader }) => leader !== '')
        ? `${inCell.node.nodeId} is in cell ${inCell.cellId} already: waiting to be added (palimpsest member add ${name}=${self.address})`
        : `${inCell.node.nodeId} is in cell ${inCell.cellId} already, which has no leader at present: waiting until a quorum of its members is there`
    else if (join.length > 0) says = 'waiting to be added to a cell'
    else {
      const missing = others.filter(([other]) => !names.has(other)).map(([other]) => other)
      if (missing.length === 0) {
        if ([...peers.keys()].sort()[0] === name) {
          const members = [
            self,
            ...replies.map(({ node }) => ({
              ...node,
              address: formatAddress(peers.get(nameOf(node.nodeId))!),
            })),
          ]
          return { cellId: options.newCellId(), members }
        }
        says = 'all members are there'
      } else says = `not heard of yet: ${missing.join(', ')}`
    }
    if (says !== said) {
      if (isLost) log.warn({ state: says }, 'no cell yet: its majority seems to be lost')
      else log.info({ state: says }, 'no cell yet')
    }
    said = says
    await clock.sleep(waitMs, stop)
  }
  return undefined
}

/**
 * What to say if a cell is left without its majority: a leader is nowhere, and most of the first members, this one among them, have empty
 * folders. Nobody can give their places away then, and "member add" finds no leader.
 */
function lostMajority(
  cellId: string,
  self: string,
  members: readonly string[],
  replies: readonly PeerHelloReply[],
): string | undefined {
  if (replies.some(({ leader }) => leader !== '')) return undefined
  const empty = new Set(replies.filter(reply => reply.cellId === '').map(({ node }) => nameOf(node.nodeId)))
  empty.add(self)
  const gone = members.filter(name => empty.has(name))
  if (gone.length * 2 <= members.length) return undefined
  const left = replies.filter(reply => reply.cellId === cellId).map(({ node }) => nameOf(node.nodeId))
  return (
    `cell ${cellId} has no leader, and ${gone.sort().join(', ')}, a majority of its ${members.length} first members, have empty folders: nobody ` +
    'can give them their places again. Give them back the folders that they had; or, if those are lost for good, stop ' +
    `${left.sort().join(', ')}, run "palimpsest member recover --data DIR" on what is left there, start it, and add these nodes to it (docs/operations.md, "After a lost majority")`
  )
}

async function ask(
  options: BootstrapOptions,
  address: Address,
  reasons: Map<string, string>,
): Promise<PeerHelloReply | undefined> {
  try {
    return await sayHello(options.dial, address, { cellId: '', node: options.self }, ASK_MS)
  } catch (error) {
    const { kind, message } = toPalimpsestError(error)
    const peer = formatAddress(address)
    if (reasons.get(peer) === message) return undefined
    reasons.set(peer, message)
    // A wrong token or certificate does not pass by itself.
    const say = kind === 'retry' ? options.log.debug : options.log.warn
    say.call(options.log, { peer, kind, reason: message }, 'peer not reached')
    return undefined
  }
}
