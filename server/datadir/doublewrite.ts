/**
 * The copies in InnoDB's doublewrite buffer, for a datadir whose machine went down: a page that was torn in its file is
 * whole there, since InnoDB writes and syncs it there first. Its recovery takes such copies before it applies redo
 * (`buf_dblwr_t::recover`), and so does an import.
 */
import { FIL_PAGE_OFFSET, FIL_PAGE_SPACE_ID, pageLsn, read4, verifyPage } from '../../parser/page-format.ts'
import type { SpaceFormat } from '../../parser/space-flags.ts'
import { formatPageId } from '../../protocol/ids.ts'
import { SpaceReader } from './page-reader.ts'
import type { SpaceFile } from './scan.ts'

export class DoublewriteCopies {
  /** Whatever stands in the slots, by the page that each claims to be; not verified. */
  readonly #slots = new Map<string, Uint8Array[]>()

  /** @param system the system tablespace */
  static async read(system: SpaceFile): Promise<DoublewriteCopies> {
    const copies = new DoublewriteCopies()
    const reader = await SpaceReader.open(system)
    if (!reader) return copies
    try {
      const size = system.format.physicalSize
      for (const area of await reader.doublewriteAreas()) {
        const raw = await reader.readRawRange(area.start, area.end - area.start)
        for (let at = 0; at + size <= raw.length; at += size) {
          const slot = raw.subarray(at, at + size)
          const id = { space: read4(slot, FIL_PAGE_SPACE_ID), page: read4(slot, FIL_PAGE_OFFSET) }
          if (id.space === 0 && id.page === 0 && pageLsn(slot) === 0) continue
          const key = formatPageId(id)
          copies.#slots.set(key, [...(copies.#slots.get(key) ?? []), slot])
        }
      }
    } finally {
      await reader.close()
    }
    return copies
  }

  /** The newest sound copy of a page, as it was written (page_compressed still compressed). */
  find(space: number, page: number, format: SpaceFormat): Uint8Array | undefined {
    let best: Uint8Array | undefined
    for (const slot of this.#slots.get(formatPageId({ space, page })) ?? []) {
      const bytes = slot.subarray(0, format.physicalSize)
      const check = verifyPage(bytes, format)
      if (check.ok && check.kind !== 'zero page' && (!best || pageLsn(bytes) > pageLsn(best))) best = bytes
    }
    return best && Uint8Array.from(best)
  }
}
