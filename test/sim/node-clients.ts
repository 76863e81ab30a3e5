/**
 * Who uses a simulated cell: writers that pipeline, come back, compete and repeat themselves; readers of any node; consumers
 * that claim to have made redo durable. Each takes an error as its kind says, and tells the checker what it was told.
 */
import type { Connection } from '../../protocol/connection.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { type Address, parseAddress } from '../../protocol/dial.ts'
import { PalimpsestError } from '../../protocol/errors.ts'
import type { Lsn, WriterEpoch } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { Violation } from './core-checker.ts'
import type { ModelTimeline, NodeChecker } from './node-checker.ts'
import type { Life } from './sim-disk.ts'
import type { SimRandom, World } from './world.ts'

export interface ClientWorld {
  readonly world: World
  readonly checker: NodeChecker
  /** Of all clients: they do not crash. */
  readonly life: Life
  /** No more faults, and no more trimming. */
  readonly isHealing: boolean
  readonly isOver: boolean
  readonly addresses: readonly Address[]
  fail(error: Error): void
  /** Opens a connection as this client. */
  dial(client: string, address: Address, forward: boolean): Promise<Connection>
}

/** Redo that nobody else would write. */
export function redo(random: SimRandom, bytes: number): Buffer {
  const out = Buffer.alloc(bytes)
  let state = random.int(1, 0x7fffffff)
  // The beginning is chance; the rest compresses, as redo does.
  for (let i = 0; i < bytes; i++) {
    if (i < 16 || i % 7 === 0) state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    out[i] = state >> 16
  }
  return out
}

/** Asks one node after the other until somebody answers. */
export class Asker {
  readonly random: SimRandom
  readonly client: string
  private readonly to: ClientWorld
  private hint: Address | undefined

  constructor(to: ClientWorld, client: string, random: SimRandom) {
    this.to = to
    this.client = client
    this.random = random
  }

  /** Runs with a connection to what may be the leader. Throws what it throws. */
  async with<T>(run: (connection: Connection) => Promise<T>): Promise<T> {
    const { to, random } = this
    const address = this.hint ?? random.pick(to.addresses)
    this.hint = undefined
    let connection: Connection | undefined
    try {
      connection = await to.dial(this.client, address, random.chance(0.3))
      const result = await run(connection)
      this.hint = address
      return result
    } catch (error) {
      if (error instanceof PalimpsestError && error.askAt !== undefined) this.hint = parseAddress(error.askAt)
      throw error
    } finally {
      connection?.close()
    }
  }

  /** Until it succeeds, or is refused for good (kind invalid), or the world ends (undefined). */
  async insist<T>(run: (connection: Connection) => Promise<T>): Promise<T | undefined> {
    const { to, random } = this
    while (!to.isOver) {
      try {
        return await this.with(run)
      } catch (error) {
        if (!(error instanceof PalimpsestError) || error.kind === 'invalid') throw error
      }
      await to.life.sleep(random.between(20, 400))
    }
    return undefined
  }
}

/** A writer of one timeline; there may be others. */
export async function write(
  to: ClientWorld,
  timeline: ModelTimeline,
  name: string,
  random: SimRandom,
): Promise<void> {
  const asker = new Asker(to, name, random)
  while (!to.isOver && timeline.isAlive) {
    try {
      await asker.with(connection => session(to, timeline, name, random, connection))
    } catch (error) {
      if (!(error instanceof PalimpsestError)) {
        to.fail(error as Error)
        return
      }
      if (error.kind === 'invalid' && timeline.isAlive) {
        to.fail(new Violation(`${name} of ${timeline.name} is refused: ${error.message}`))
        return
      }
    }
    await to.life.sleep(random.between(5, random.chance(0.2) ? 1500 : 150))
  }
}

async function session(
  to: ClientWorld,
  timeline: ModelTimeline,
  writer: string,
  random: SimRandom,
  connection: Connection,
): Promise<void> {
  const { id } = timeline
  const { checker } = to
  const knownEpoch = timeline.epoch
  const { message: opened } = await connection.request({ type: MessageType.WalOpen, timeline: id, writer })
  const { epoch } = opened
  checker.demand(epoch > knownEpoch, () => {
    return `${writer} is given epoch ${epoch} of ${timeline.name} after ${knownEpoch} was known`
  })
  let at = opened.endLsn as number
  let last: { begin: number; payload: Buffer } | undefined
  const append = async (begin: number, payload: Buffer) => {
    const chunk = { begin, end: begin + payload.length, crc: crc32c(payload, 0, payload.length) }
    checker.sending(timeline, chunk)
    const isStale = timeline.epoch > epoch
    const { message } = await connection.request(
      {
        type: MessageType.WalAppend,
        timeline: id,
        epoch: epoch as WriterEpoch,
        beginLsn: begin as Lsn,
        wallTimeUs: Math.round(to.world.nowMs * 1000),
      },
      { bulk: payload },
    )
    checker.demand(!isStale, () => {
      return `${writer} appended to ${timeline.name} in epoch ${epoch} after epoch ${timeline.epoch} was known`
    })
    checker.demand(message.committedLsn >= chunk.end, () => {
      return `${writer} is told ${message.committedLsn} for an append up to ${chunk.end}`
    })
  }
  for (let rounds = random.int(1, 40); rounds > 0 && !to.isOver && timeline.isAlive; rounds--) {
    const batch: Promise<void>[] = []
    for (let n = random.chance(0.5) ? 1 : random.int(1, 6); n > 0; n--) {
      const payload = redo(random, random.chance(0.05) ? random.int(5000, 30_000) : random.int(20, 2500))
      batch.push(append(at, payload))
      last = { begin: at, payload }
      at += payload.length
    }
    // What was said before and perhaps not heard.
    if (last !== undefined && random.chance(0.1)) batch.push(append(last.begin, last.payload))
    const results = await Promise.allSettled(batch)
    for (const result of results) if (result.status === 'rejected') throw result.reason
    if (last !== undefined && random.chance(0.03)) await contradict(timeline, epoch, last, connection)
    await to.life.sleep(random.between(1, random.chance(0.1) ? 400 : 60))
  }
}

/** Other bytes where some are already: must not be taken. */
async function contradict(
  timeline: ModelTimeline,
  epoch: number,
  { begin, payload }: { begin: number; payload: Buffer },
  connection: Connection,
): Promise<void> {
  const other = Buffer.from(payload)
  other[0]! ^= 1
  timeline.contradictions.add(crc32c(other, 0, other.length))
  // It may have been trimmed since, so that there is nothing to compare with; then it is not written either.
  await connection
    .request(
      {
        type: MessageType.WalAppend,
        timeline: timeline.id,
        epoch: epoch as WriterEpoch,
        beginLsn: begin as Lsn,
        wallTimeUs: 0,
      },
      { bulk: other },
    )
    .catch(error => {
      if (error instanceof PalimpsestError && error.kind === 'invalid' && /differs/.test(error.message))
        return
      throw error
    })
}

/** Reads from `from` to the end that this node has; every chunk is told to the checker. Returns where that is. */
export async function readThrough(
  to: ClientWorld,
  connection: Connection,
  timeline: ModelTimeline,
  from: number,
  by: string,
): Promise<number> {
  let at = from
  const request = {
    type: MessageType.WalRead,
    timeline: timeline.id,
    fromLsn: from as Lsn,
    follow: false,
  } as const
  for await (const { message, bulk } of connection.stream(request)) {
    if (message.type === MessageType.WalReadEnd) break
    if (message.type !== MessageType.WalData) continue
    const { beginLsn } = message
    to.checker.demand(beginLsn === at, () => `${by} reads ${beginLsn} of ${timeline.name} after ${at}`)
    const end = beginLsn + bulk.length
    to.checker.seen(timeline, { begin: beginLsn, end, crc: crc32c(bulk, 0, bulk.length) }, by)
    to.checker.chunksRead++
    at = end
  }
  return at
}

/** Reads what may be there, now from this node, now from that. */
export async function read(to: ClientWorld, name: string, random: SimRandom): Promise<void> {
  while (!to.isHealing) {
    await to.life.sleep(random.between(50, 600))
    const all = [...to.checker.timelines.values()].filter(timeline => timeline.isAlive)
    if (all.length === 0) continue
    const timeline = random.pick(all)
    const address = random.pick(to.addresses)
    let connection: Connection | undefined
    try {
      connection = await to.dial(name, address, false)
      const from = startsFrom(timeline, random)
      await readThrough(to, connection, timeline, from, `${name} at ${address.host}`)
    } catch (error) {
      if (!(error instanceof PalimpsestError)) {
        to.fail(error as Error)
        return
      }
      if (error.kind === 'corrupt') to.fail(new Violation(`${name} reads ${timeline.name}: ${error.message}`))
    } finally {
      connection?.close()
    }
  }
}

function startsFrom(timeline: ModelTimeline, random: SimRandom): number {
  const bounds = [...timeline.chunks.keys()].filter(begin => begin >= timeline.neededFrom)
  return bounds.length === 0 || random.chance(0.3) ? timeline.neededFrom : random.pick(bounds)
}

/** Says at which LSN it has made the timeline durable, further and further on. */
export async function consume(
  to: ClientWorld,
  timeline: ModelTimeline,
  consumer: string,
  random: SimRandom,
): Promise<void> {
  const asker = new Asker(to, `${consumer} of ${timeline.id.slice(0, 4)}`, random)
  while (!to.isHealing && timeline.isAlive) {
    await to.life.sleep(random.between(100, 900))
    const at = timeline.consumers.get(consumer)!
    const ends = [...timeline.chunks.values()]
      .map(chunk => chunk.end)
      .filter(end => end > at && end <= timeline.ackedEnd)
    if (ends.length === 0 || to.isHealing) continue
    ends.sort((a, b) => a - b)
    const lsn = ends[random.int(0, ends.length - 1)]!
    timeline.consumers.set(consumer, lsn)
    try {
      await asker.with(connection => claim(connection, timeline, consumer, lsn))
    } catch (error) {
      if (!(error instanceof PalimpsestError)) to.fail(error as Error)
      else if (error.kind === 'invalid' && timeline.isAlive)
        to.fail(new Violation(`${consumer} of ${timeline.name} is refused: ${error.message}`))
    }
  }
}

export async function claim(
  connection: Connection,
  timeline: ModelTimeline,
  consumer: string,
  lsn: number,
): Promise<void> {
  await connection.request({
    type: MessageType.WalTrim,
    timeline: timeline.id,
    consumer,
    durableLsn: lsn as Lsn,
  })
}
