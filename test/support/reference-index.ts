/**
 * The obvious way to index redo by page: maps, objects and a decoder of its own. What parser/chunk-index.ts is compared
 * with. It trusts its input to be right and shares no code with what it checks.
 */

export interface ReferenceEntry {
  offset: number
  length: number
  /** End of the mini-transaction. */
  lsn: number
  init: boolean
  free: boolean
}

export interface ReferenceIndex {
  /** "space:page" to its entries, oldest first. */
  pages: Map<string, ReferenceEntry[]>
  mtrs: number
  records: number
  entries: number
}

function decode(buf: Uint8Array, at: number): { value: number; bytes: number } {
  const view = new DataView(buf.buffer, buf.byteOffset, buf.byteLength)
  const first = view.getUint8(at)
  if (first < 0b10000000) return { value: first, bytes: 1 }
  if (first < 0b11000000) return { value: 128 + (view.getUint16(at) - 0x8000), bytes: 2 }
  if (first < 0b11100000)
    return { value: 16512 + (view.getUint16(at) - 0xc000) * 256 + view.getUint8(at + 2), bytes: 3 }
  if (first < 0b11110000) return { value: 2113664 + (view.getUint32(at) - 0xe0000000), bytes: 4 }
  return { value: 270549120 + view.getUint32(at + 1), bytes: 5 }
}

/** Indexes the whole mini-transactions in `buf[start, end)`, the first of which begins at LSN `begin`. */
export function referenceIndex(buf: Uint8Array, start: number, end: number, begin: number): ReferenceIndex {
  const index: ReferenceIndex = { pages: new Map(), mtrs: 0, records: 0, entries: 0 }
  let at = start
  while (at < end) {
    // First all records of the mini-transaction, then what they mean.
    const records: { start: number; end: number; body: number; first: number }[] = []
    while (buf[at]! > 1) {
      const first = buf[at]!
      let body = at + 1
      let stop = body + (first & 15)
      if ((first & 15) === 0) {
        const added = decode(buf, body)
        stop = body + added.value + 15
        body += added.bytes
      }
      records.push({ start: at, end: stop, body, first })
      at = stop
    }
    at += 5
    index.mtrs++
    index.records += records.length
    const lsn = begin + (at - start)

    let current: { id: string; entry: ReferenceEntry } | undefined
    let seenPage = false
    for (const r of records) {
      if (r.first >= 0x80 && !seenPage) continue // a file record
      const type = (r.first >> 4) & 7
      if (r.first >= 0x80) {
        current!.entry.length = r.end - current!.entry.offset
        continue
      }
      seenPage = true
      const space = decode(buf, r.body)
      const page = decode(buf, r.body + space.bytes)
      const payload = r.body + space.bytes + page.bytes
      const id = `${space.value}:${page.value}`
      if (type === 2 && buf[payload] === 10) {
        current = undefined // TRIM_PAGES
        continue
      }
      if (current !== undefined && current.id === id && type > 1) {
        current.entry.length = r.end - current.entry.offset
        continue
      }
      const entry = { offset: r.start, length: r.end - r.start, lsn, init: type === 1, free: type === 0 }
      current = { id, entry }
      if (!index.pages.has(id)) index.pages.set(id, [])
      index.pages.get(id)!.push(entry)
      index.entries++
    }
  }
  return index
}
