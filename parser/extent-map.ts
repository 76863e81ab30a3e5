/**
 * Which pages of a tablespace are in use, from its extent descriptors; and where ibdata1 has its doublewrite area.
 *
 * InnoDB says nothing about the bytes of a free page: it may leave the old ones, zero them, or punch a hole. Comparing
 * two copies of a tablespace therefore leaves free pages out.
 *
 * Page 0 and every physicalSize-th page after it carry an array of extent descriptors; each has two bits per page, of
 * which the lower one means free. Pages from FSP_FREE_LIMIT on have no descriptor yet and are free.
 * Follows fsp0fsp.h, fsp0fsp.cc (`xdes_calc_descriptor_page`, `xdes_is_free`), trx0sys.h (doublewrite).
 */
import {
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_FSP_HDR,
  FIL_PAGE_TYPE_XDES,
  FSP_FREE_LIMIT,
  FSP_SIZE,
  read2,
  read4,
  XDES_ARR_OFFSET,
} from './page-format.ts'
import { extentDescriptorSize, extentPages, type SpaceFormat } from './space-flags.ts'

/** Reads a page of the tablespace; undefined or an all-zero page where there is none. */
export type PageReader = (pageNo: number) => Uint8Array | undefined

const XDES_STATE = 20
const XDES_BITMAP = 24

/** States of an extent; 0 is an extent that was never taken up. */
export const EXTENT_STATES = ['not initialised', 'free', 'free fragment', 'full fragment', 'segment'] as const

/** The number of the page that describes `pageNo`. */
export function descriptorPageOf(pageNo: number, format: SpaceFormat): number {
  return pageNo - (pageNo % format.physicalSize)
}

/** Byte offset, on its descriptor page, of the extent that `pageNo` lies in. */
export function descriptorOffset(pageNo: number, format: SpaceFormat): number {
  const extent = Math.floor((pageNo % format.physicalSize) / extentPages(format.logicalSize))
  return XDES_ARR_OFFSET + extent * extentDescriptorSize(format.logicalSize)
}

/** One extent descriptor's state and which of its pages are free. */
export interface ExtentDescriptor {
  readonly state: number
  isFree(index: number): boolean
}

export function readDescriptor(page: Uint8Array, at: number): ExtentDescriptor {
  return {
    state: read4(page, at + XDES_STATE),
    isFree: index => (page[at + XDES_BITMAP + (index >> 2)]! & (1 << ((index & 3) * 2))) !== 0,
  }
}

export class ExtentMap {
  readonly #format: SpaceFormat
  readonly #read: PageReader
  readonly #freeLimit: number
  /** FSP_SIZE: pages that the tablespace has. */
  readonly size: number

  constructor(format: SpaceFormat, read: PageReader) {
    this.#format = format
    this.#read = read
    const page0 = read(0)
    this.#freeLimit = page0 ? read4(page0, FSP_FREE_LIMIT) : 0
    this.size = page0 ? read4(page0, FSP_SIZE) : 0
  }

  /** FSP_FREE_LIMIT: from this page on nothing was ever allocated. */
  get freeLimit(): number {
    return this.#freeLimit
  }

  isFree(pageNo: number): boolean {
    if (pageNo >= this.#freeLimit) return true
    const page = this.#read(descriptorPageOf(pageNo, this.#format))
    if (!page) return true
    const type = read2(page, FIL_PAGE_TYPE)
    if (type !== FIL_PAGE_TYPE_FSP_HDR && type !== FIL_PAGE_TYPE_XDES) return true
    const descriptor = readDescriptor(page, descriptorOffset(pageNo, this.#format))
    return descriptor.state === 0 || descriptor.isFree(pageNo % extentPages(this.#format.logicalSize))
  }
}

const DOUBLEWRITE_FROM_END = 200
const DOUBLEWRITE_MAGIC = 536853855
const FSEG_HEADER_SIZE = 10

/** A run of pages, `end` exclusive. */
export interface PageRange {
  readonly start: number
  readonly end: number
}

/**
 * The pages of the system tablespace that hold InnoDB's doublewrite buffer: copies of other pages, never in the redo.
 * @param trxSys page 5 of the system tablespace
 */
export function doublewriteAreas(trxSys: Uint8Array, format: SpaceFormat): PageRange[] {
  const at = format.logicalSize - DOUBLEWRITE_FROM_END + FSEG_HEADER_SIZE
  if (read4(trxSys, at) !== DOUBLEWRITE_MAGIC) return []
  const length = extentPages(format.logicalSize)
  return [read4(trxSys, at + 4), read4(trxSys, at + 8)].map(start => ({ start, end: start + length }))
}
