/**
 * Who may have what this node's disk has lost of the log: the other members of the cell, and its backup. docs/log-format.md, "Repair".
 */
import type { Connection } from '../../protocol/connection.ts'
import type { Address } from '../../protocol/dial.ts'
import {
  FETCH_BYTES_MAX,
  MessageType,
  type PeerEntry,
  type PeerFetch,
  type PeerFetched,
} from '../../protocol/messages.ts'
import { invalidError, retryError } from '../shared/errors.ts'
import type { ObjectReader } from '../shared/object-store.ts'
import { type BackupPack, loadManifest } from './backup-manifest.ts'
import { entriesOf } from './backup-reader.ts'
import type { LogIndex } from './core/types.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'
import type { PackEntry } from './log/pack-codec.ts'
import type { EntrySource, Fetched } from './log/repair.ts'
import { logEntries } from './peer-entries.ts'

const FETCH_MS = 10_000
/** Of one answer, whose head lists them all. */
const FETCH_ENTRIES_MAX = 2048

/** Another member, asked over a connection of its own, which is kept until it rests. */
export class PeerSource implements EntrySource {
  readonly name: string
  private readonly cellId: string
  private readonly address: Address
  private readonly dial: (address: Address) => Promise<Connection>
  private connection: Promise<Connection> | undefined

  constructor(
    name: string,
    cellId: string,
    address: Address,
    dial: (address: Address) => Promise<Connection>,
  ) {
    this.name = name
    this.cellId = cellId
    this.address = address
    this.dial = dial
  }

  async fetch(first: LogIndex, last: LogIndex, bytesMax: number): Promise<Fetched> {
    const connection = await this.connect()
    const { message, bulk } = await connection.request(
      { type: MessageType.PeerFetch, cellId: this.cellId, first, last, bytesMax },
      { deadlineMs: FETCH_MS },
    )
    return fetchedOf(message, first, Buffer.from(bulk))
  }

  private connect(): Promise<Connection> {
    if (this.connection !== undefined) return this.connection
    const fresh = this.dial(this.address)
    this.connection = fresh
    const forget = () => {
      if (this.connection === fresh) this.connection = undefined
    }
    fresh.then(({ closed }) => {
      if (closed.aborted) forget()
      else closed.addEventListener('abort', forget)
    }, forget)
    return fresh
  }

  rest(): void {
    this.connection?.then(
      connection => connection.close(),
      () => {},
    )
    this.connection = undefined
  }
}

/** What was sent, as entries that keep their payloads in `bulk`. */
function fetchedOf(message: PeerFetched, first: number, bulk: Buffer): Fetched {
  const heads = message.entries.map(({ entry }) => entry)
  return {
    entries: logEntries(heads, first, bulk),
    isVoid: index =>
      index <= message.appliedIndex ? message.entries[index - first]?.isVoid === true : undefined,
  }
}

/** Answers another member that has lost a part of its log, from this node's own disk. */
export async function answerFetch(
  message: PeerFetch,
  cellId: string,
  log: CellLog,
): Promise<{ reply: PeerFetched; payloads: Uint8Array[] }> {
  if (message.cellId !== cellId)
    throw invalidError(`this safekeeper is in cell ${cellId}, not in ${message.cellId || 'none'}`)
  const { first, last, bytesMax } = message
  // Before it is read: of what is applied meanwhile it is not told here which is void.
  const { appliedIndex } = log
  const found = await log.readOwn(
    first as LogIndex,
    last as LogIndex,
    Math.min(Math.max(bytesMax, 1), FETCH_BYTES_MAX),
  )
  const payloads: Uint8Array[] = []
  const entries = found.slice(0, FETCH_ENTRIES_MAX).map(({ isVoid, index: _, payload, ...entry }) => {
    if (payload.length > 0) payloads.push(payload)
    return { isVoid, entry: { ...entry, payloadBytes: payload.length } satisfies PeerEntry }
  })
  const { beginIndex } = log
  return { reply: { type: MessageType.PeerFetched, beginIndex, appliedIndex, entries }, payloads }
}

/** The cell's backup. Which entries are void its packs tell, but for those that earlier releases have made. */
export class BackupSource implements EntrySource {
  readonly name: string
  private readonly store: ObjectReader
  private readonly cellId: string
  /** The pack that was read last: what follows is mostly in it too. */
  private held: { readonly key: string; readonly entries: PackEntry[] } | undefined

  constructor(store: ObjectReader, cellId: string) {
    this.name = `the backup in ${store.description}`
    this.store = store
    this.cellId = cellId
  }

  async fetch(first: LogIndex, last: LogIndex, bytesMax: number): Promise<Fetched> {
    const manifest = await loadManifest(this.store, this.cellId)
    const pack = manifest?.packs.find(other => other.first <= first && other.last >= first)
    const entries: LogEntry[] = []
    const voids = new Set<number>()
    let bytes = 0
    for (const { isVoid, ...entry } of pack === undefined ? [] : await this.entries(pack)) {
      if (entry.index < first) continue
      bytes += entry.payload.length
      if (entry.index > last || (entries.length > 0 && bytes > bytesMax)) break
      entries.push(entry)
      if (isVoid) voids.add(entry.index)
    }
    return { entries, isVoid: index => (pack?.tellsVoids ? voids.has(index) : undefined) }
  }

  private async entries(pack: BackupPack): Promise<PackEntry[]> {
    if (this.held?.key === pack.key) return this.held.entries
    const entries: PackEntry[] = []
    try {
      for await (const entry of entriesOf(this.store, pack)) entries.push(entry)
    } catch (error) {
      // It may have been merged into another since the manifest was read: that is no damage.
      const now = await loadManifest(this.store, this.cellId)
      if (now?.packs.some(({ key }) => key === pack.key) === false)
        throw retryError(`${this.name} is being rearranged`, error)
      throw error
    }
    this.held = { key: pack.key, entries }
    return entries
  }

  rest(): void {
    this.held = undefined
  }
}
