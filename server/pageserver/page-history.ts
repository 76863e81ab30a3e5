/**
 * The list of a page's changes: at which LSNs, by which kinds of record. Runs in a worker.
 *
 * The walk is that of reconstruct.ts, newest source first, but looks at the records instead of applying them. Entries of
 * one mini-transaction are one change.
 */
import { RecordCursor, RecordType } from '../../parser/record-decoder.ts'
import type { Lsn } from '../../protocol/ids.ts'
import type { HistoryEntry } from '../../protocol/messages-page.ts'
import { type ArenaMemory, NO_WORD } from './arena.ts'
import { type LayerFiles, type LayerSource, MISSING_LAYERS_MAX, type MissingLayers } from './layer-files.ts'
import type { PageRequest } from './reconstruct.ts'
import { RunCursor } from './run-index.ts'

export interface PageHistoryInput {
  readonly request: PageRequest
  /** Newest first, as places in `request.layers`; image layers only if they come from an import. */
  readonly layers: readonly LayerSource[]
  /** Changes in (fromLsn, toLsn]. */
  readonly fromLsn: Lsn
  readonly toLsn: Lsn
  readonly limit: number
}

export interface PageHistoryResult {
  /** Newest first. */
  readonly entries: HistoryEntry[]
  /** False if there are older changes than the limit let through. */
  readonly complete: boolean
}

/** One change under construction. */
interface Change {
  readonly lsn: Lsn
  bytes: number
  readonly types: Map<number, number>
}

/** Type as the protocol has it: the first byte's type bits, plus 256 × subtype for EXTENDED and OPTION. */
function recordTypeNumber(type: number, subtype: number): number {
  const bits = type & 0x70
  return (bits === RecordType.EXTENDED || bits === RecordType.OPTION) && subtype >= 0
    ? bits + 256 * subtype
    : bits
}

export class HistoryReader {
  readonly #arenaBytes: Uint8Array
  readonly #files: LayerFiles
  readonly #runs: RunCursor
  readonly #records = new RecordCursor()

  constructor(arenas: ArenaMemory, files: LayerFiles) {
    this.#arenaBytes = arenas.region.bytes
    this.#files = files
    this.#runs = new RunCursor(arenas)
  }

  read(input: PageHistoryInput): PageHistoryResult | MissingLayers {
    const { request, layers, toLsn, limit } = input
    const fromLsn = Math.max(input.fromLsn, request.trimLsn) as Lsn
    const found: HistoryEntry[] = []
    for (const newest of request.runs)
      for (let run = newest; run !== NO_WORD && found.length <= limit; run = this.#runs.previous(run)) {
        this.#runs.open(run)
        if (this.#runs.lastLsn <= fromLsn) break
        if (this.#runs.firstLsn > toLsn) continue
        const changes: Change[] = []
        while (this.#runs.next()) {
          const { lsn, start, end } = this.#runs
          if (lsn <= fromLsn || lsn > toLsn) continue
          this.#note(changes, this.#arenaBytes, start, end, lsn, limit)
        }
        push(found, changes)
      }
    const { space, page } = request
    for (const [i, place] of request.layers.entries()) {
      if (found.length > limit) break
      const layer = layers[place]!
      if (layer.path === undefined) {
        const missing = request.layers.slice(i).filter(at => layers[at]!.path === undefined)
        return { missing: missing.slice(0, MISSING_LAYERS_MAX) }
      }
      const handle = this.#files.find(layer, space, page)
      if (handle < 0) continue
      if (layer.kind === 'image') {
        const reader = this.#files.reader(layer)
        const lsn = reader.imagePageLsn(handle)
        if (lsn > fromLsn && lsn <= toLsn)
          found.push({ lsn, kind: 'image', bytes: reader.imageBytes(handle), recordTypes: [] })
        continue
      }
      const changes: Change[] = []
      this.#files.forEachEntry(layer, handle, fromLsn, toLsn, (buf, start, end, lsn) =>
        this.#note(changes, buf, start, end, lsn, limit),
      )
      push(found, changes)
    }
    if (found.length <= limit && request.trimLsn > input.fromLsn && request.trimLsn <= toLsn)
      found.push({ lsn: request.trimLsn, kind: 'trim', bytes: 0, recordTypes: [] })
    const complete = found.length <= limit
    found.length = Math.min(found.length, limit)
    return { entries: found, complete }
  }

  /** Adds an entry to the changes of one source, which come oldest first; only the newest `limit` + 1 are kept. */
  #note(changes: Change[], buf: Uint8Array, start: number, end: number, lsn: Lsn, limit: number): void {
    let change = changes[changes.length - 1]
    if (change?.lsn !== lsn) {
      change = { lsn, bytes: 0, types: new Map() }
      changes.push(change)
      // In large steps, so that forgetting costs little.
      if (changes.length > 2 * limit + 1024) changes.splice(0, changes.length - limit - 1)
    }
    change.bytes += end - start
    const records = this.#records
    records.reset(buf, start, end)
    while (records.next()) {
      const type = recordTypeNumber(records.type, records.subtype)
      change.types.set(type, (change.types.get(type) ?? 0) + 1)
    }
  }
}

/** Appends changes, newest first. One mini-transaction never spans two sources. */
function push(found: HistoryEntry[], changes: readonly Change[]): void {
  for (let i = changes.length - 1; i >= 0; i--) {
    const { lsn, bytes, types } = changes[i]!
    found.push({
      lsn,
      kind: 'records',
      bytes,
      recordTypes: [...types].map(([recordType, count]) => ({ recordType, count })),
    })
  }
}
