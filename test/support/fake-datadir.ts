/** Files that look like InnoDB's to whoever reads page 0 and checksums, and hold nothing. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { descriptorOffset } from '../../parser/extent-map.ts'
import { makeLogFileHead } from '../../parser/log-file.ts'
import {
  FIL_PAGE_INDEX,
  FIL_PAGE_OFFSET,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_FSP_HDR,
  FSP_FREE_LIMIT,
  FSP_SIZE,
  FSP_SPACE_FLAGS,
  FSP_SPACE_ID,
  stampChecksum,
  write2,
  write4,
  writePageLsn,
} from '../../parser/page-format.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { toLsn } from '../../protocol/ids.ts'

/** full_crc32, 16 KiB pages. */
export const FLAGS_16K = 0x15

export interface FakeSpace {
  readonly space: number
  readonly pages: number
  readonly flags?: number
  readonly lsn?: number
  /** Pages that the extent descriptors call free. */
  readonly free?: readonly number[]
  /** FSP_SIZE, if not `pages`. */
  readonly fspSize?: number
}

/** All pages of a tablespace of up to 256 pages, with right checksums; page 0 is a header, the others say "index". */
export function fakeSpace(options: FakeSpace): Buffer {
  const { space, pages, flags = FLAGS_16K, lsn = 20_000, free = [], fspSize = pages } = options
  const format = parseSpaceFlags(flags)
  const size = format.physicalSize
  const file = Buffer.alloc(pages * size)
  for (let page = 0; page < pages; page++) {
    const bytes = file.subarray(page * size, (page + 1) * size)
    write4(bytes, FIL_PAGE_OFFSET, page)
    write4(bytes, FIL_PAGE_SPACE_ID, space)
    write2(bytes, FIL_PAGE_TYPE, page === 0 ? FIL_PAGE_TYPE_FSP_HDR : FIL_PAGE_INDEX)
    writePageLsn(bytes, toLsn(lsn + page))
    if (page === 0) {
      write4(bytes, FSP_SPACE_ID, space)
      write4(bytes, FSP_SIZE, fspSize)
      write4(bytes, FSP_FREE_LIMIT, Math.max(64, fspSize))
      write4(bytes, FSP_SPACE_FLAGS, flags)
      for (let i = 0; i < pages; i++) {
        const at = descriptorOffset(i, format)
        write4(bytes, at + 20, 4)
        if (free.includes(i)) bytes[at + 24 + ((i % 64) >> 2)]! |= 1 << (((i % 64) & 3) * 2)
      }
    } else bytes.fill(page, 200, 300)
    stampChecksum(bytes, format)
  }
  return file
}

/** A datadir with ibdata1, ib_logfile0 and what `files` adds or replaces. */
export function fakeDatadir(directory: string, files: Record<string, Uint8Array | string> = {}): string {
  const log = Buffer.alloc(0x3000 + 4096)
  log.set(makeLogFileHead(toLsn(30_000), 'MariaDB 10.11.18'))
  const all = { ibdata1: fakeSpace({ space: 0, pages: 200 }), ib_logfile0: log, ...files }
  for (const [name, content] of Object.entries(all)) {
    const path = join(directory, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, content)
  }
  return directory
}
