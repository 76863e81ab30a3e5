/**
 * Where the nodes stand: on loopback, or each in a network namespace of its own, behind a bridge, where its links can be cut.
 * The namespaces belong to this process's own network and mount namespaces (run.ts enters them with unshare), so that nothing
 * of it is seen outside and all of it goes with the processes.
 */
import { createServer } from 'node:net'
import type { Address } from '../../protocol/dial.ts'
import { command } from './process.ts'

/**
 * isolate: its cable is pulled. peers: cut off from all peers, clients reach it. outgoing, incoming: only what it sends to, or gets
 * from, its peers is lost. pair: cut off from one of its peers.
 */
export const CUTS = ['isolate', 'peers', 'outgoing', 'incoming', 'pair'] as const
export type Cut = (typeof CUTS)[number]

export interface Slot {
  readonly address: Address
  /** Before a command that is to run there. */
  readonly prefix: readonly string[]
}

export interface Network {
  readonly slots: readonly Slot[]
  /** Of the page server. */
  readonly local: Address
  /** Undefined where links cannot be cut. @returns what heals it */
  readonly cut?: (slot: Slot, peers: readonly Slot[], cut: Cut) => Promise<() => Promise<void>>
}

export async function loopback(slots: number): Promise<Network> {
  const addresses: Address[] = []
  for (let i = 0; i <= slots; i++) addresses.push({ host: '127.0.0.1', port: await freePort() })
  return { slots: addresses.slice(1).map(address => ({ address, prefix: [] })), local: addresses[0]! }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}

const NET = '10.77.0'
const PORT = 7070

/** Inside of namespaces made by `unshare --net --mount` only. */
export async function namespaces(slots: number): Promise<Network> {
  await command('ip', 'link', 'set', 'lo', 'up')
  await command('ip', 'link', 'add', 'br0', 'type', 'bridge')
  await command('ip', 'addr', 'add', `${NET}.254/24`, 'dev', 'br0')
  await command('ip', 'link', 'set', 'br0', 'up')
  const made: Slot[] = []
  for (let i = 1; i <= slots; i++) {
    const name = `n${i}`
    await command('ip', 'netns', 'add', name)
    await command('ip', 'link', 'add', `v${i}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name)
    await command('ip', 'link', 'set', `v${i}`, 'master', 'br0', 'up')
    await command('ip', '-n', name, 'addr', 'add', `${NET}.${i}/24`, 'dev', 'eth0')
    await command('ip', '-n', name, 'link', 'set', 'lo', 'up')
    await command('ip', '-n', name, 'link', 'set', 'eth0', 'up')
    made.push({ address: { host: `${NET}.${i}`, port: PORT }, prefix: ['ip', 'netns', 'exec', name] })
  }
  const numberOf = (slot: Slot) => made.indexOf(slot) + 1
  /** What `from` sends to `to` vanishes. */
  const blackhole = async (verb: 'add' | 'del', from: Slot, to: Slot): Promise<void> => {
    await command('ip', '-n', `n${numberOf(from)}`, 'route', verb, 'blackhole', `${to.address.host}/32`)
  }
  return {
    slots: made,
    local: { host: '127.0.0.1', port: PORT },
    async cut(slot, peers, cut) {
      if (cut === 'isolate') {
        const link = `v${numberOf(slot)}`
        await command('ip', 'link', 'set', link, 'down')
        return async () => {
          await command('ip', 'link', 'set', link, 'up')
        }
      }
      const lost: [Slot, Slot][] = []
      for (const peer of cut === 'pair' ? peers.slice(0, 1) : peers) {
        if (cut !== 'incoming') lost.push([slot, peer])
        if (cut !== 'outgoing') lost.push([peer, slot])
      }
      for (const [from, to] of lost) await blackhole('add', from, to)
      return async () => {
        for (const [from, to] of lost) await blackhole('del', from, to)
      }
    },
  }
}
