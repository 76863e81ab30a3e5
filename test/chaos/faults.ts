/**
 * The faults. Each is put in, shown to be survived while it lasts (the synthetic writer gets acknowledgements), and healed before
 * the next one: a quorum is never away.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { SeededRandom } from '../support/workloads/random.ts'
import type { BankSide } from './bank-side.ts'
import type { ChaosCell, ChaosNode } from './cell.ts'
import { type Keys, serialOf } from './keys.ts'
import { CUTS, type Cut, type Network } from './network.ts'
import type { SyntheticWriter } from './synthetic.ts'

export const FAULTS = [
  'kill',
  'stop',
  'partition',
  'disk',
  'rotate',
  'replace',
  'empty',
  'pageserver',
] as const
export type FaultName = (typeof FAULTS)[number]

export interface Stage {
  readonly cell: ChaosCell
  readonly network: Network
  readonly keys: Keys
  readonly synthetic: SyntheticWriter
  /** Undefined in a run without MariaDB. */
  readonly bank: BankSide | undefined
  readonly random: SeededRandom
  /** From each SIGKILL of a leader to the next acknowledgement, ms. */
  readonly leaderlessMs: number[]
  say(text: string): void
}

export interface Fault {
  readonly name: FaultName
  readonly text: string
  run(stage: Stage): Promise<void>
}

type Whom = 'leader' | 'follower'
const WHOM = ['leader', 'follower'] as const

const NEXT_LEADER_MS = 60_000
const SERIAL_MS = 30_000

async function pick({ cell, random }: Stage, whom: Whom): Promise<ChaosNode> {
  const leader = await cell.leader()
  return whom === 'leader' ? leader : random.pick(cell.peersOf(leader))
}

/** One of each kind that was asked for; the death of a leader, which is timed, several times. */
export function roundOf(names: readonly FaultName[]): Fault[] {
  const all: Fault[] = [
    ...WHOM.map(whom => kill(whom)),
    kill('leader'),
    kill('leader'),
    ...WHOM.map(whom => stop(whom)),
    ...CUTS.flatMap(cut => WHOM.map(whom => partition(whom, cut))),
    ...WHOM.map(whom => fillDisk(whom)),
    rotate,
    ...WHOM.map(whom => replace(whom)),
    removeAndAdd,
    ...WHOM.map(whom => empty(whom)),
    killPageServer,
  ]
  return all.filter(fault => names.includes(fault.name))
}

/** SIGKILL, and a start some time later. */
export function kill(whom: Whom): Fault {
  return {
    name: 'kill',
    text: `kill -9 of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const { synthetic, leaderlessMs } = stage
      const node = await pick(stage, whom)
      await synthetic.progress()
      if (whom === 'leader') {
        const acked = synthetic.ackOfNextLeader(NEXT_LEADER_MS)
        const killedAt = performance.now()
        const dead = node.process.kill9()
        const ms = (await acked) - killedAt
        await dead
        leaderlessMs.push(ms)
        stage.say(`${node.name} was killed; the next acknowledgement came after ${Math.round(ms)} ms`)
      } else {
        await node.process.kill9()
        stage.say(`${node.name} was killed`)
      }
      await synthetic.progress()
      await sleep(stage.random.below(2000))
      await node.process.start()
    },
  }
}

export function stop(whom: Whom): Fault {
  return {
    name: 'stop',
    text: `SIGSTOP of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const node = await pick(stage, whom)
      node.process.signal('SIGSTOP')
      try {
        stage.say(`${node.name} is stopped`)
        await stage.synthetic.progress()
        await sleep(1000 + stage.random.below(4000))
        await stage.synthetic.progress()
      } finally {
        node.process.signal('SIGCONT')
      }
    },
  }
}

function partition(whom: Whom, cut: Cut): Fault {
  return {
    name: 'partition',
    text: `partition (${cut}) of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const { cell, network, synthetic, random } = stage
      if (network.cut === undefined) throw new Error('links cannot be cut here')
      const node = await pick(stage, whom)
      const peers = cell.peersOf(node).map(peer => peer.slot)
      if (random.below(2) === 0) peers.reverse()
      const heal = await network.cut(node.slot, peers, cut)
      try {
        stage.say(`${node.name} is cut off`)
        // What the kernel still had on its way may be acknowledged yet.
        await sleep(500)
        await synthetic.progress()
        await sleep(1000 + random.below(4000))
        await synthetic.progress()
      } finally {
        await heal()
      }
    },
  }
}

function fillDisk(whom: Whom): Fault {
  return {
    name: 'disk',
    text: `disk full of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const node = await pick(stage, whom)
      if (node.disk === undefined) throw new Error('no node has a disk of its own here')
      await node.disk.fill()
      try {
        stage.say(`the disk of ${node.name} is full`)
        await sleep(500)
        await stage.synthetic.progress()
        await sleep(1000 + stage.random.below(4000))
        await stage.synthetic.progress()
      } finally {
        node.disk.free()
      }
    },
  }
}

const rotate: Fault = {
  name: 'rotate',
  text: 'certificates and tokens renewed',
  async run({ cell, network, keys, bank, synthetic, random, say }) {
    const addresses = [...cell.running.values(), ...(bank === undefined ? [] : [network.local])]
    const before = await Promise.all(addresses.map(serialOf))
    await keys.renew()
    // Half of the time it is found by looking, half of the time it is told.
    if (random.below(2) === 0) for (const node of cell.nodes.values()) node.process.signal('SIGHUP')
    const until = performance.now() + SERIAL_MS
    for (;;) {
      const now = await Promise.all(addresses.map(serialOf))
      const old = addresses.filter((_, i) => now[i] === before[i])
      if (old.length === 0) break
      if (performance.now() > until)
        throw new Error(
          `still with the old certificate: ${old.map(({ port, host }) => `${host}:${port}`).join(', ')}`,
        )
      await sleep(100)
    }
    say('all servers show new certificates')
    await synthetic.progress()
    // Connections that are made from now on: by a node that comes back.
    const follower = cell.peersOf(await cell.leader())[0]!
    await follower.process.kill9()
    await synthetic.progress()
    await follower.process.start()
  },
}

export function replace(whom: Whom): Fault {
  return {
    name: 'replace',
    text: `member replace of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const { cell, synthetic } = stage
      const old = await pick(stage, whom)
      const spare = await cell.startSpare()
      const { host, port } = spare.slot.address
      await cell.member('replace', old.name, `${spare.name}=${host}:${port}`)
      stage.say(`${spare.name} is in the place of ${old.name}`)
      await cell.discard(old)
      await synthetic.progress()
    },
  }
}

const removeAndAdd: Fault = {
  name: 'replace',
  text: 'member remove, then member add',
  async run(stage) {
    const { cell, synthetic } = stage
    const old = await pick(stage, stage.random.pick(WHOM))
    await cell.member('remove', old.name)
    stage.say(`${old.name} is removed`)
    await cell.discard(old)
    await synthetic.progress()
    const spare = await cell.startSpare()
    const { host, port } = spare.slot.address
    await cell.member('add', `${spare.name}=${host}:${port}`)
    stage.say(`${spare.name} is added`)
    await synthetic.progress()
  },
}

export function empty(whom: Whom): Fault {
  return {
    name: 'empty',
    text: `folder emptied of ${whom === 'leader' ? 'the leader' : 'a follower'}`,
    async run(stage) {
      const { cell, synthetic } = stage
      const node = await pick(stage, whom)
      const before = (await cell.status(node)).nodeId
      await node.process.kill9()
      cell.emptyFolder(node)
      synthetic.forget(node.name)
      await synthetic.progress()
      await node.process.start()
      stage.say(`${node.name} starts with an empty folder`)
      await cell.whole(90_000)
      if ((await cell.status(node)).nodeId === before)
        throw new Error(`${node.name} came back as the same incarnation with an empty folder`)
    },
  }
}

const killPageServer: Fault = {
  name: 'pageserver',
  text: 'kill -9 of the page server',
  async run({ bank, synthetic, random, say }) {
    if (bank === undefined) throw new Error('there is no page server')
    await bank.pageServer.kill9()
    say('the page server was killed')
    await synthetic.progress()
    await sleep(random.below(3000))
    await bank.pageServer.start()
  },
}
