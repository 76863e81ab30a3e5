/** Compares a chunk index with the reference; returns what differs first, or undefined. */
import { ChunkIndexView, EntryFlag, NO_ENTRY, PageFlag } from '../../parser/chunk-index.ts'
import type { ReferenceIndex } from './reference-index.ts'

export function firstDifference(
  region: Uint32Array,
  reference: ReferenceIndex,
  begin: number,
  base: number,
): string | undefined {
  const view = new ChunkIndexView(region)
  if (view.pageCount !== reference.pages.size)
    return `${view.pageCount} pages, expected ${reference.pages.size}`
  if (view.entryCount !== reference.entries)
    return `${view.entryCount} entries, expected ${reference.entries}`
  if (view.mtrCount !== reference.mtrs)
    return `${view.mtrCount} mini-transactions, expected ${reference.mtrs}`
  if (view.recordCount !== reference.records)
    return `${view.recordCount} records, expected ${reference.records}`
  let entry = 0
  for (let p = 0; p < view.pageCount; p++) {
    const space = view.pageSpace[p]!
    const page = view.pageNumber[p]!
    const id = `${space}:${page}`
    if (p > 0) {
      const before = view.pageSpace[p - 1]!
      if (before > space || (before === space && view.pageNumber[p - 1]! >= page))
        return `${id} is out of order`
    }
    if (view.findPage(space, page) !== p) return `${id} is not found`
    const expected = reference.pages.get(id)
    if (expected === undefined) return `${id} is not in the reference`
    if (view.pageFirstEntry[p] !== entry)
      return `${id} begins at entry ${view.pageFirstEntry[p]}, expected ${entry}`
    if (view.pageEntryCount[p] !== expected.length) return `${id} has ${view.pageEntryCount[p]} entries`
    if (view.pageFirstLsn[p] !== expected[0]!.lsn - begin) return `${id}: first LSN`
    if (view.pageLastLsn[p] !== expected.at(-1)!.lsn - begin) return `${id}: last LSN`
    const init = expected.findLastIndex(e => e.init || e.free)
    if (view.pageLastInitEntry[p] !== (init < 0 ? NO_ENTRY : entry + init)) return `${id}: last init entry`
    if (view.pageFlags[p] !== (init < 0 ? 0 : PageFlag.HAS_INIT)) return `${id}: flags`
    let n = 0
    let wrong: string | undefined
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
    })
    if (wrong !== undefined) return wrong
    entry += expected.length
  }
  return undefined
}
