/** Compares a chunk's index with the reference; returns what differs first, or undefined. */
import { type ChunkIndexer, type ChunkIndexResult, EntryFlag } from '../../parser/chunk-index.ts'
import { ChunkIndexView } from './chunk-index-view.ts'
import type { ReferenceIndex } from './reference-index.ts'

function varintBytes(value: number): number {
  return value < 128 ? 1 : 1 + varintBytes(Math.floor(value / 128))
}

/** `begin`: the LSN at which the chunk begins; `base`: where it begins in the buffer that the reference counts from. */
export function firstDifference(
  indexer: ChunkIndexer,
  result: ChunkIndexResult,
  reference: ReferenceIndex,
  begin: number,
  base: number,
): string | undefined {
  const view = new ChunkIndexView(indexer)
  if (view.pageCount !== reference.pages.size || result.pages !== reference.pages.size)
    return `${view.pageCount} pages, expected ${reference.pages.size}`
  if (view.entryCount !== reference.entries || result.entries !== reference.entries)
    return `${view.entryCount} entries, expected ${reference.entries}`
  if (result.mtrs !== reference.mtrs) return `${result.mtrs} mini-transactions, expected ${reference.mtrs}`
  if (result.records !== reference.records) return `${result.records} records, expected ${reference.records}`
  for (let p = 0; p < view.pageCount; p++) {
    const space = view.pageSpace[p]!
    const page = view.pageNumber[p]!
    const id = `${space}:${page}`
    if (p > 0) {
      const before = view.pageSpace[p - 1]!
      if (before > space || (before === space && view.pageNumber[p - 1]! >= page))
        return `${id} is out of order`
    }
    const expected = reference.pages.get(id)
    if (expected === undefined) return `${id} is not in the reference`
    if (view.pageEntryCount[p] !== expected.length) return `${id} has ${view.pageEntryCount[p]} entries`
    if (view.pageFirstLsn[p] !== expected[0]!.lsn - begin) return `${id}: first LSN`
    if (view.pageLastLsn[p] !== expected.at(-1)!.lsn - begin) return `${id}: last LSN`
    let n = 0
    let wrong: string | undefined
    let allFlags = 0
    let payload = 0
    let bytes = 0
    let before = 0
    view.forEachEntry(p, (offset, length, lsn, flags) => {
      const e = expected[n]!
      const expectedFlags = (e.init ? EntryFlag.INIT_PAGE : 0) | (e.free ? EntryFlag.FREE_PAGE : 0)
      if (
        offset !== e.offset - base ||
        length !== e.length ||
        lsn !== e.lsn - begin ||
        flags !== expectedFlags
      )
        wrong ??= `${id}, its entry ${n}: ${offset}+${length} at ${lsn} flags ${flags}, expected ${JSON.stringify(e)}`
      n++
      allFlags |= expectedFlags
      payload += length
      bytes += varintBytes(lsn - before) + varintBytes(length * 4 + flags) + length
      before = lsn
    })
    if (wrong !== undefined) return wrong
    if (n !== expected.length) return `${id} leads to ${n} entries`
    if (view.pageFlags[p] !== allFlags) return `${id}: flags`
    if (view.pagePayload[p] !== payload) return `${id}: bytes of its entries`
    if (view.pageBytes[p] !== bytes) return `${id}: bytes of its entries with their varints`
  }
  return undefined
}
