/**
 * Reads packs from wherever their bytes are: a file, an object of the backup, memory. All that is given out has been checked
 * against its CRCs; what does not fit is an error of kind corrupt that names the pack and the offset.
 */
import { crc32c } from '../../../protocol/crc32c.ts'
import type { TimelineId } from '../../../protocol/ids.ts'
import { corruptError } from '../../shared/errors.ts'
import type { Term } from '../core/types.ts'
import { ENTRY_HEADER_BYTES } from './entry.ts'
import {
  decodePackFooter,
  decodePackHeader,
  decodeSummary,
  decodeTable,
  entryOfRow,
  PACK_FOOTER_BYTES,
  PACK_HEADER_BYTES,
  PackDamage,
  type PackEntry,
  type PackFooter,
  type PackGroup,
  type PackHeader,
  type PackSection,
  type PackSummary,
  type PackTable,
  unpackGroup,
  unpackSection,
} from './pack-codec.ts'

/** Where the bytes of a pack are. */
export interface PackSource {
  /** For errors: a path, a key. */
  readonly name: string
  size(): Promise<number>
  /** Fills `target` from `position`; returns fewer bytes only at the end. */
  read(target: Uint8Array, position: number): Promise<number>
}

export function packSourceOf(name: string, bytes: Uint8Array): PackSource {
  return {
    name,
    size: async () => bytes.length,
    read: async (target, position) => {
      const part = bytes.subarray(position, position + target.length)
      target.set(part)
      return part.length
    },
  }
}

export interface PackHead {
  readonly header: PackHeader
  readonly footer: PackFooter
  readonly summary: PackSummary
}

/** Runs `read`; what it finds damaged becomes an error of kind corrupt. */
async function checked<T>(source: PackSource, read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (error) {
    if (!(error instanceof PackDamage)) throw error
    throw corruptError(`log pack ${source.name} is damaged at offset ${error.offset}: ${error.message}`)
  }
}

async function readAt(source: PackSource, offset: number, bytes: number): Promise<Buffer> {
  const target = Buffer.allocUnsafeSlow(bytes)
  return target.subarray(0, await source.read(target, offset))
}

export function readPackHeader(source: PackSource): Promise<PackHeader> {
  return checked(source, async () => decodePackHeader(await readAt(source, 0, PACK_HEADER_BYTES)))
}

/** Header, footer and summary; two or three reads. */
export function readPackHead(source: PackSource): Promise<PackHead> {
  return checked(source, async () => {
    const header = decodePackHeader(await readAt(source, 0, PACK_HEADER_BYTES))
    const size = await source.size()
    const at = Math.max(0, size - PACK_FOOTER_BYTES)
    const footer = decodePackFooter(await readAt(source, at, size - at), size, header)
    const summary = decodeSummary(await readSection(source, footer.summary), header, footer)
    return { header, footer, summary }
  })
}

export function readPackTable(source: PackSource, { header, footer, summary }: PackHead): Promise<PackTable> {
  return checked(source, async () =>
    decodeTable(await readSection(source, footer.table), header, summary, footer.table.offset),
  )
}

async function readSection(source: PackSource, section: PackSection): Promise<Buffer> {
  return unpackSection(await readAt(source, section.offset, section.storedBytes), section)
}

/** The uncompressed bytes of a group. */
export function readPackGroup(source: PackSource, group: PackGroup): Promise<Buffer> {
  return checked(source, async () =>
    unpackGroup(await readAt(source, group.offset, group.storedBytes), group),
  )
}

/** Finds the terms of ascending rows. */
export class TermWalk {
  readonly #summary: PackSummary
  #run = 0
  /** First row behind the run. */
  #end: number

  constructor(summary: PackSummary) {
    this.#summary = summary
    this.#end = summary.runs[0]!.count
  }

  termOf(row: number): Term {
    while (row >= this.#end) this.#end += this.#summary.runs[++this.#run]!.count
    return this.#summary.runs[this.#run]!.term
  }
}

/** The entry of a row; `group` holds its payload, if it has one. Throws PackDamage if that does not fit its CRC. */
export function entryFromGroup(
  head: PackHead,
  table: PackTable,
  row: number,
  term: Term,
  group: Buffer | undefined,
): PackEntry {
  const { header, summary } = head
  if (group === undefined) return entryOfRow(table, row, header, summary, term)
  const at = table.offsets[row]!
  const end = at + table.payloadBytes[row]!
  if (crc32c(group, at, end) !== table.crcs[row])
    throw new PackDamage(
      summary.groups[table.groups[row]!]!.offset,
      `the payload of entry ${header.firstIndex + row} has a wrong CRC-32C`,
    )
  return entryOfRow(table, row, header, summary, term, group.subarray(at, end))
}

/**
 * Entries of rows [from, to] as far as they fit into `bytesMax`, headers included, but at least one. `groupOf` gives the bytes
 * of a group.
 */
export function readPackRows(
  source: PackSource,
  head: PackHead,
  table: PackTable,
  from: number,
  to: number,
  bytesMax: number,
  groupOf: (group: number) => Promise<Buffer>,
): Promise<PackEntry[]> {
  return checked(source, async () => {
    const entries: PackEntry[] = []
    const terms = new TermWalk(head.summary)
    // What these rows need, not more than the groups of one read; neighbours are mostly in the same few.
    const groups = new Map<number, Buffer>()
    let bytes = 0
    for (let row = from; row <= to; row++) {
      bytes += ENTRY_HEADER_BYTES + table.payloadBytes[row]!
      if (entries.length > 0 && bytes > bytesMax) break
      const number = table.groups[row]!
      let group: Buffer | undefined
      if (number >= 0) {
        group = groups.get(number) ?? (await groupOf(number))
        groups.set(number, group)
      }
      entries.push(entryFromGroup(head, table, row, terms.termOf(row), group))
    }
    return entries
  })
}

/** Entries of chosen rows, ascending: until their payloads have `bytesMin`, and then to the end of the last group. */
export function readPackChosen(
  source: PackSource,
  head: PackHead,
  table: PackTable,
  rows: Uint32Array,
  bytesMin: number,
  groupOf: (group: number) => Promise<Buffer>,
): Promise<PackEntry[]> {
  return checked(source, async () => {
    const entries: PackEntry[] = []
    const terms = new TermWalk(head.summary)
    let last = -1
    let group: Buffer | undefined
    let bytes = 0
    for (const row of rows) {
      const number = table.groups[row]!
      if (number >= 0 && number !== last) {
        if (bytes >= bytesMin) break
        group = await groupOf(number)
        last = number
      }
      bytes += table.payloadBytes[row]!
      entries.push(entryFromGroup(head, table, row, terms.termOf(row), number >= 0 ? group : undefined))
    }
    return entries
  })
}

/**
 * All entries of a pack, in order, each checked: reading it to the end verifies the pack. Holds the uncompressed groups that
 * have entries to come.
 */
export async function* packEntries(source: PackSource, known?: PackHead): AsyncGenerator<PackEntry> {
  const head = known ?? (await readPackHead(source))
  const table = await readPackTable(source, head)
  const left = new Map<number, number>()
  const groups = new Map<number, Buffer>()
  for (const [number, { runs }] of head.summary.groups.entries())
    left.set(
      number,
      runs.reduce((sum, { count }) => sum + count, 0),
    )
  const terms = new TermWalk(head.summary)
  for (let row = 0; row < table.rows; row++) {
    const number = table.groups[row]!
    if (number >= 0 && !groups.has(number))
      groups.set(number, await readPackGroup(source, head.summary.groups[number]!))
    yield await checked(source, async () =>
      entryFromGroup(head, table, row, terms.termOf(row), groups.get(number)),
    )
    if (number < 0) continue
    const count = left.get(number)! - 1
    left.set(number, count)
    if (count === 0) groups.delete(number)
  }
}

/** Place of a timeline in the summary; -1 if it is not there. */
export function placeOfTimeline(summary: PackSummary, id: TimelineId): number {
  let low = 0
  let high = summary.timelines.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (summary.timelines[middle]!.id < id) low = middle + 1
    else high = middle
  }
  return summary.timelines[low]?.id === id ? low : -1
}
