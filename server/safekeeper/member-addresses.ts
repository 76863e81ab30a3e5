/**
 * Where the members of the cell are, and so where this node subscribes. The address of a member is, the first that there is of
 *
 * 1. where it answered when this node looked for the leader, for as long as the state says of it what it said then;
 * 2. what the cell's state says: a node tells the leader itself where it is, each time it starts;
 * 3. what `--peers` says.
 *
 * The state comes before `--peers`, or those that run on would not find a member that moved. What answered comes before the state, for this
 * node's may be old: it was away, the leader has moved, and that stands in entries which that very leader would send it.
 */
import { type Address, formatAddress, parseAddress } from '../../protocol/dial.ts'
import type { PeerHelloReply, PeerNode } from '../../protocol/messages.ts'
import type { NodeId } from './core/types.ts'
import type { Driver } from './driver.ts'
import type { Members } from './members.ts'
import { nameOf } from './node-files.ts'
import { type DialPeer, sayHello } from './peer-hello.ts'

const HELLO_MS = 5000
/** Addresses that are asked in one round: a cell has few members, and hardly more that were others' before. */
const ASKED_MAX = 64

export interface MemberAddressesOptions {
  readonly cellId: string
  /** Asked for again each time: a port may be known only later. */
  readonly self: () => PeerNode
  /** The first members by name. */
  readonly configured: ReadonlyMap<string, Address>
  /** Others of the cell that were named at the start. */
  readonly join: readonly Address[]
  readonly driver: Pick<Driver, 'leader' | 'state'>
  readonly members: Pick<Members, 'all'>
  /** Whether that node is subscribed here at present. */
  readonly isConnected: (id: NodeId) => boolean
  readonly dial: DialPeer
  /** Subscribes at these nodes (by name) and at no others. */
  readonly subscribeAt: (targets: ReadonlyMap<string, Address>) => void
}

interface Found {
  readonly address: string
  /** What the state said of the node then; empty: nothing. */
  readonly stateSaid: string
}

export class MemberAddresses {
  private readonly options: MemberAddressesOptions
  private readonly found = new Map<NodeId, Found>()
  /** Of nodes that subscribed here: what they said of themselves. Who is no member may be one by a membership that is newer than this node's. */
  private readonly told = new Map<NodeId, string>()

  constructor(options: MemberAddressesOptions) {
    this.options = options
  }

  /** HOST:PORT; empty if it is not known. */
  addressOf(id: NodeId): string {
    const stateSays = this.inState(id)
    const found = this.found.get(id)
    if (found !== undefined && found.stateSaid === stateSays) return found.address
    if (stateSays !== '') return stateSays
    const configured = this.options.configured.get(nameOf(id))
    return configured === undefined ? '' : formatAddress(configured)
  }

  private inState(id: NodeId): string {
    return this.options.driver.state.nodes.get(id)?.address ?? ''
  }

  /** HOST:PORT; empty if there is no leader, or it is not known where. */
  get leaderAddress(): string {
    const { leader } = this.options.driver
    if (leader === undefined) return ''
    const self = this.options.self()
    return leader === self.nodeId ? self.address : this.addressOf(leader)
  }

  /** A node subscribed here: it is asked there too when the leader is looked for. */
  onSubscribed({ nodeId, address }: PeerNode): void {
    try {
      parseAddress(address)
    } catch {
      return
    }
    this.told.set(nodeId, address)
  }

  /** Subscribes at all members; what changes their addresses, or who is a member, is followed by this. */
  aim(): void {
    const { configured, members, subscribeAt, isConnected } = this.options
    const { nodeId: self } = this.options.self()
    const { all } = members
    const targets = new Map<string, Address>()
    // Before the newest membership is known, also at those that may be members; those that were removed are not asked any more.
    if (!all.has(self)) {
      for (const [name, address] of configured) targets.set(name, address)
      for (const [id, { address }] of this.found) targets.set(nameOf(id), parseAddress(address))
    } else for (const id of this.found.keys()) if (!all.has(id)) this.found.delete(id)
    for (const id of all) {
      const address = this.addressOf(id)
      if (address !== '') targets.set(nameOf(id), parseAddress(address))
    }
    for (const id of this.told.keys()) if (!all.has(id) && !isConnected(id)) this.told.delete(id)
    for (const [name, address] of this.perhapsMembers()) targets.set(name, address)
    targets.delete(nameOf(self))
    subscribeAt(targets)
  }

  /**
   * Nodes of the cell that count this one as a member, and are none by its own membership: they were added while it was away, and one of them
   * may have to lead, with this node's vote, before anybody can tell it so. Listened to while no leader is heard, and while they lead.
   */
  private perhapsMembers(): Map<string, Address> {
    const { driver, members, isConnected } = this.options
    const found = new Map<string, Address>()
    for (const [id, address] of this.told) {
      if (members.all.has(id) || (driver.leader !== undefined && driver.leader !== id)) continue
      // One that is there keeps its place from a namesake.
      const namesake = [...members.all].find(other => nameOf(other) === nameOf(id))
      if (namesake === undefined || !isConnected(namesake)) found.set(nameOf(id), parseAddress(address))
    }
    return found
  }

  /**
   * Asks everybody who may know where the leader is, if this node hears of none: a node that was added knows nobody yet but those it
   * was told to ask, and one that was away may know members and not where they are now. Resolves with where (HOST:PORT) those are that say there is
   * another leader, itself first.
   */
  async lookForLeader(): Promise<string[]> {
    const { driver, members, configured, join, self, isConnected } = this.options
    if (members.all.has(self().nodeId) && driver.leader !== undefined) return []
    const asked = new Set([self().address])
    const answered = new Map<NodeId, string[]>()
    const led: string[] = []
    const ask = async (address: string): Promise<void> => {
      if (address === '' || asked.has(address) || asked.size > ASKED_MAX) return
      asked.add(address)
      const reply = await this.ask(address)
      if (reply === undefined) return
      const { nodeId } = reply.node
      answered.set(nodeId, [...(answered.get(nodeId) ?? []), address])
      if (reply.leader === nodeId) led.unshift(address)
      else if (reply.leader !== '' && reply.leader !== self().nodeId) led.push(address)
      await ask(reply.leaderAddress)
    }
    const candidates = [
      ...[...join, ...configured.values()].map(formatAddress),
      ...[...this.found.values()].map(({ address }) => address),
      ...[...this.told].flatMap(([id, address]) => (members.all.has(id) || isConnected(id) ? [address] : [])),
      ...[...members.all].map(id => this.inState(id)),
    ]
    await Promise.all(candidates.map(ask))
    for (const [id, addresses] of answered) this.answeredAt(id, addresses)
    this.aim()
    return led
  }

  /** undefined: it did not answer, or is in no cell, or another. */
  private async ask(address: string): Promise<PeerHelloReply | undefined> {
    const { cellId, dial, self } = this.options
    try {
      const reply = await sayHello(dial, parseAddress(address), { cellId, node: self() }, HELLO_MS)
      return reply.cellId === cellId ? reply : undefined
    } catch {
      // Another one may know.
      return undefined
    }
  }

  private answeredAt(id: NodeId, addresses: readonly string[]): void {
    const stateSaid = this.inState(id)
    if (addresses.includes(stateSaid)) this.found.delete(id)
    else if (!addresses.includes(this.addressOf(id)))
      this.found.set(id, { address: addresses[0]!, stateSaid })
  }
}
