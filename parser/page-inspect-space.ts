/** Tablespace header, extent descriptors and segment inodes taken apart. See page-inspect.ts; follows fsp0fsp.h. */
import { EXTENT_STATES, readDescriptor } from './extent-map.ts'
import {
  FIL_NULL,
  FIL_PAGE_DATA,
  FIL_PAGE_OFFSET,
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_FSP_HDR,
  FSP_FRAG_N_USED,
  FSP_FREE,
  FSP_FREE_FRAG,
  FSP_FREE_LIMIT,
  FSP_FULL_FRAG,
  FSP_SEG_ID,
  FSP_SEG_INODES_FREE,
  FSP_SEG_INODES_FULL,
  FSP_SIZE,
  FSP_SPACE_FLAGS,
  FSP_SPACE_ID,
  read2,
  read4,
  read8,
  XDES_ARR_OFFSET,
} from './page-format.ts'
import { type ListAddress, listAddress } from './page-inspect-undo.ts'
import {
  extentDescriptorSize,
  extentPages,
  PAGE_ALGORITHM_NAMES,
  parseSpaceFlags,
  type SpaceFormat,
} from './space-flags.ts'

export interface SpaceHeaderInspection {
  readonly spaceId: number
  /** Pages. */
  readonly size: number
  readonly freeLimit: number
  readonly flags: number
  /** The flags in words, or why they are not valid. */
  readonly flagsText: string
  readonly fragmentPagesUsed: number
  /** Lengths of the lists of extents and inode pages. */
  readonly freeExtents: number
  readonly freeFragments: number
  readonly fullFragments: number
  readonly nextSegmentId: string
  readonly inodePagesFull: number
  readonly inodePagesFree: number
}

export interface ExtentInspection {
  /** First page of the extent. */
  readonly page: number
  readonly state: string
  /** The segment that it belongs to; "0" for none. */
  readonly segmentId: string
  readonly usedPages: number
}

export interface ExtentsInspection {
  readonly kind: 'extents'
  /** On page 0 only. */
  readonly header: SpaceHeaderInspection | null
  /** Extents that were ever taken up. */
  readonly extents: readonly ExtentInspection[]
}

export interface SegmentInspection {
  readonly offset: number
  readonly id: string
  readonly notFullPagesUsed: number
  readonly freeExtents: number
  readonly notFullExtents: number
  readonly fullExtents: number
  readonly fragmentPages: readonly number[]
}

export interface InodeInspection {
  readonly kind: 'inodes'
  readonly previous: ListAddress | null
  readonly next: ListAddress | null
  readonly segments: readonly SegmentInspection[]
}

function flagsText(flags: number): string {
  try {
    const format = parseSpaceFlags(flags)
    const parts = [`${format.logicalSize / 1024} KiB pages`, format.fullCrc32 ? 'full_crc32' : 'crc32']
    if (format.zip) parts.push(`ROW_FORMAT=COMPRESSED in ${format.physicalSize / 1024} KiB`)
    if (format.pageCompressed)
      parts.push(
        format.fullCrc32
          ? `page_compressed with ${PAGE_ALGORITHM_NAMES[format.pageCompressed]}`
          : 'page_compressed',
      )
    return parts.join(', ')
  } catch (error) {
    return (error as Error).message
  }
}

function inspectHeader(page: Uint8Array): SpaceHeaderInspection {
  return {
    spaceId: read4(page, FSP_SPACE_ID),
    size: read4(page, FSP_SIZE),
    freeLimit: read4(page, FSP_FREE_LIMIT),
    flags: read4(page, FSP_SPACE_FLAGS),
    flagsText: flagsText(read4(page, FSP_SPACE_FLAGS)),
    fragmentPagesUsed: read4(page, FSP_FRAG_N_USED),
    freeExtents: read4(page, FSP_FREE),
    freeFragments: read4(page, FSP_FREE_FRAG),
    fullFragments: read4(page, FSP_FULL_FRAG),
    nextSegmentId: read8(page, FSP_SEG_ID).toString(),
    inodePagesFull: read4(page, FSP_SEG_INODES_FULL),
    inodePagesFree: read4(page, FSP_SEG_INODES_FREE),
  }
}

export function inspectExtents(page: Uint8Array, format: SpaceFormat, problems: string[]): ExtentsInspection {
  const pages = extentPages(format.logicalSize)
  const bytes = extentDescriptorSize(format.logicalSize)
  const first = read4(page, FIL_PAGE_OFFSET)
  const extents: ExtentInspection[] = []
  for (let i = 0; i < format.physicalSize / pages; i++) {
    const at = XDES_ARR_OFFSET + i * bytes
    if (at + bytes > page.length - 8) break
    const descriptor = readDescriptor(page, at)
    if (descriptor.state === 0) continue
    const state = EXTENT_STATES[descriptor.state]
    if (!state) problems.push(`extent ${i}: state ${descriptor.state} is none`)
    let usedPages = 0
    for (let n = 0; n < pages; n++) if (!descriptor.isFree(n)) usedPages++
    if (descriptor.state === 1 && usedPages > 0)
      problems.push(`extent ${i} is free, but ${usedPages} of its pages are used`)
    extents.push({
      page: first + i * pages,
      state: state ?? `state ${descriptor.state}`,
      segmentId: read8(page, at).toString(),
      usedPages,
    })
  }
  const header = read2(page, FIL_PAGE_TYPE) === FIL_PAGE_TYPE_FSP_HDR ? inspectHeader(page) : null
  if (header && first !== 0) problems.push('a tablespace header on another page than page 0')
  return { kind: 'extents', header, extents }
}

const FSEG_MAGIC_N = 97937874
const INODE_HEAD = 64

export function inspectInodes(page: Uint8Array, format: SpaceFormat, problems: string[]): InodeInspection {
  const fragments = extentPages(format.logicalSize) / 2
  const bytes = INODE_HEAD + fragments * 4
  const segments: SegmentInspection[] = []
  for (let at = FIL_PAGE_DATA + 12; at + bytes <= page.length - 10; at += bytes) {
    const id = read8(page, at)
    if (id === 0n) continue
    if (read4(page, at + 60) !== FSEG_MAGIC_N)
      problems.push(`segment inode at ${at}: magic number is ${read4(page, at + 60)}`)
    const fragmentPages = []
    for (let i = 0; i < fragments; i++) {
      const n = read4(page, at + INODE_HEAD + i * 4)
      if (n !== FIL_NULL) fragmentPages.push(n)
    }
    segments.push({
      offset: at,
      id: id.toString(),
      notFullPagesUsed: read4(page, at + 8),
      freeExtents: read4(page, at + 12),
      notFullExtents: read4(page, at + 28),
      fullExtents: read4(page, at + 44),
      fragmentPages,
    })
  }
  return {
    kind: 'inodes',
    previous: listAddress(page, FIL_PAGE_DATA),
    next: listAddress(page, FIL_PAGE_DATA + 6),
    segments,
  }
}
