/**
 * The bytes that all layer files have in common: header, sections, footer. docs/storage-format.md tells why.
 *
 *     header (64)  blocks or pages …  sections …  footer (256)
 *
 * Everything is little-endian. A layer is written once, front to back; the footer, found from the end of the file, says
 * where the sections are, and the sections say where the blocks are. Each of these parts has a CRC-32C of its own.
 */
import { MTR_SCAN_BYTES_MAX } from '../../parser/mtr-scanner.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { LSN_MAX, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import { corruptError, internalError, type PalimpsestError } from '../shared/errors.ts'

const LAYER_MAGIC = 'PLPSLAYR'
const LAYER_END_MAGIC = 'PLPSLEND'
const LAYER_FORMAT_VERSION = 1
export const LAYER_HEADER_BYTES = 64
export const LAYER_FOOTER_BYTES = 256

export const LayerKind = { DELTA: 1, IMAGE: 2 } as const
export type LayerKind = (typeof LayerKind)[keyof typeof LayerKind]

/** How a block, page or section is stored. */
export const Encoding = { ZERO: 0, RAW: 1, ZSTD: 2 } as const
export type Encoding = (typeof Encoding)[keyof typeof Encoding]

export const SectionKind = { PAGES: 0, BLOCKS: 1, CATALOGUE: 2, TIMES: 3 } as const
export type SectionKind = (typeof SectionKind)[keyof typeof SectionKind]
export const SECTION_COUNT = 4
const SECTION_BYTES = 32
const SECTION_TABLE_OFFSET = 96
const FOOTER_CRC_OFFSET = 244

/** No section is larger; this bounds what a reader allocates on a file's word. */
export const SECTION_RAW_BYTES_MAX = 512 << 20
/** A block holds at least one entry, and an entry is part of one mini-transaction, be it a crafted one. */
export const BLOCK_RAW_BYTES_MAX = 4 << 20
export const ENTRY_BYTES_MAX = MTR_SCAN_BYTES_MAX
export const PHYSICAL_PAGE_BYTES_MAX = 65536

/** Words of 32 bits per page in the page index of a delta layer, column after column, in this order. */
export const DeltaColumn = {
  SPACE: 0,
  PAGE: 1,
  /** Where the page's first fragment begins: number of the block, offset in its uncompressed bytes. */
  BLOCK: 2,
  OFFSET: 3,
  ENTRIES: 4,
  /** Sum of the entries' lengths. */
  BYTES: 5,
  FIRST_LSN_LOW: 6,
  FIRST_LSN_HIGH: 7,
  LAST_LSN_LOW: 8,
  LAST_LSN_HIGH: 9,
  /** LSN of the last entry that begins with INIT_PAGE, and its fragment; LSN 0 if there is none. */
  INIT_LSN_LOW: 10,
  INIT_LSN_HIGH: 11,
  INIT_BLOCK: 12,
  INIT_OFFSET: 13,
} as const
export const DELTA_COLUMNS = 14

/** The same for the block index of a delta layer. */
export const BlockColumn = {
  OFFSET_LOW: 0,
  OFFSET_HIGH: 1,
  STORED_BYTES: 2,
  RAW_BYTES: 3,
  ENCODING: 4,
  /** Of the stored bytes. */
  CRC: 5,
  /** LSN of the first entry in the block. */
  FIRST_LSN_LOW: 6,
  FIRST_LSN_HIGH: 7,
} as const
export const BLOCK_COLUMNS = 8

/** The same for the page index of an image layer. */
export const ImageColumn = {
  SPACE: 0,
  PAGE: 1,
  OFFSET_LOW: 2,
  OFFSET_HIGH: 3,
  STORED_BYTES: 4,
  /** Physical size of the page: low 24 bits; encoding: high 8 bits. */
  SIZE_ENCODING: 5,
  /** CRC-32C of the page's bytes, uncompressed. */
  CRC: 6,
  /** FIL_PAGE_LSN, or the LSN to which the page was reconstructed. */
  PAGE_LSN_LOW: 7,
  PAGE_LSN_HIGH: 8,
} as const
export const IMAGE_COLUMNS = 9

/** Before each fragment (a run of entries for one page within one block): space, page, entries, bytes | MORE. */
export const FRAGMENT_HEADER_BYTES = 16
/** In a fragment's byte count: the page's entries go on in the next fragment. */
export const FRAGMENT_MORE = 0x80000000

/** An entry's flags, as parser/chunk-index.ts has them; in a layer they are the low two bits of the length varint. */
export const ENTRY_FLAGS_MASK = 3
/** The one of them that this file format knows by itself: the entry begins with INIT_PAGE. */
export const ENTRY_FLAG_INIT = 1

export interface LayerIdentity {
  readonly kind: LayerKind
  readonly timeline: TimelineId
  /** The page server's generation that wrote it. */
  readonly generation: number
  /**
   * A delta layer has the entries with lsnStart < LSN <= lsnEnd. For an image layer both are the LSN that its pages
   * are as of.
   */
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
}

export interface SectionInfo {
  readonly encoding: Encoding
  readonly offset: number
  readonly storedBytes: number
  readonly rawBytes: number
  readonly crc: number
}

export interface LayerFooter extends LayerIdentity {
  readonly fileBytes: number
  /** Entries of a delta layer, pages of an image layer. */
  readonly entries: number
  readonly pages: number
  readonly blocks: number
  /** Entries or pages before compression, in bytes. */
  readonly rawBytes: number
  /** Least and greatest wall clock of the time samples, µs since 1970; both 0 without samples. */
  readonly minTimeUs: number
  readonly maxTimeUs: number
  /** By SectionKind. */
  readonly sections: readonly SectionInfo[]
}

/** A damaged layer file: the message names the file, the byte, and what to do. */
export function corruptLayer(path: string, offset: number, reason: string, cause?: unknown): PalimpsestError {
  return corruptError(
    `layer file ${path}, byte ${offset}: ${reason}; restore the file from a copy of the object store`,
    undefined,
    cause,
  )
}

export function writeU64(buf: Buffer, offset: number, value: number): void {
  buf.writeUInt32LE(value % 0x100000000, offset)
  buf.writeUInt32LE(Math.floor(value / 0x100000000), offset + 4)
}

/** A 64-bit number, or -1 if it exceeds 2^53 - 1. */
export function readU64(buf: Buffer, offset: number): number {
  const high = buf.readUInt32LE(offset + 4)
  return high > 0x1fffff ? -1 : high * 0x100000000 + buf.readUInt32LE(offset)
}

function writeIdentity(buf: Buffer, offset: number, id: LayerIdentity): void {
  buf.write(id.timeline, offset, 16, 'hex')
  writeU64(buf, offset + 16, id.lsnStart)
  writeU64(buf, offset + 24, id.lsnEnd)
  writeU64(buf, offset + 32, id.generation)
}

function readIdentity(path: string, buf: Buffer, offset: number, at: number, kind: number): LayerIdentity {
  const lsnStart = readU64(buf, offset + 16)
  const lsnEnd = readU64(buf, offset + 24)
  const generation = readU64(buf, offset + 32)
  if (kind !== LayerKind.DELTA && kind !== LayerKind.IMAGE)
    throw corruptLayer(path, at, `unknown layer kind ${kind}`)
  if (lsnStart < 0 || lsnEnd < 0 || generation < 0 || lsnEnd > LSN_MAX)
    throw corruptLayer(path, at, 'an LSN or generation beyond 2^53-1')
  if (kind === LayerKind.IMAGE ? lsnStart !== lsnEnd : lsnStart > lsnEnd)
    throw corruptLayer(path, at, `LSN range ${lsnStart}..${lsnEnd} is none for this kind of layer`)
  return {
    kind,
    timeline: buf.toString('hex', offset, offset + 16) as TimelineId,
    generation,
    lsnStart: lsnStart as Lsn,
    lsnEnd: lsnEnd as Lsn,
  }
}

export function encodeLayerHeader(id: LayerIdentity): Buffer {
  const buf = Buffer.alloc(LAYER_HEADER_BYTES)
  buf.write(LAYER_MAGIC, 0, 'latin1')
  buf.writeUInt32LE(LAYER_FORMAT_VERSION, 8)
  buf.writeUInt32LE(id.kind, 12)
  writeIdentity(buf, 16, id)
  buf.writeUInt32LE(crc32c(buf, 0, 60), 60)
  return buf
}

function checkVersion(path: string, at: number, version: number): void {
  if (version !== LAYER_FORMAT_VERSION)
    throw corruptLayer(
      path,
      at,
      `format version ${version}; this software reads version ${LAYER_FORMAT_VERSION}`,
    )
}

export function decodeLayerHeader(path: string, buf: Buffer): LayerIdentity {
  if (buf.toString('latin1', 0, 8) !== LAYER_MAGIC) throw corruptLayer(path, 0, 'this is no layer file')
  checkVersion(path, 8, buf.readUInt32LE(8))
  if (crc32c(buf, 0, 60) !== buf.readUInt32LE(60))
    throw corruptLayer(path, 0, 'the header does not match its CRC-32C')
  return readIdentity(path, buf, 16, 0, buf.readUInt32LE(12))
}

export function encodeLayerFooter(footer: LayerFooter): Buffer {
  const buf = Buffer.alloc(LAYER_FOOTER_BYTES)
  buf.writeUInt32LE(LAYER_FORMAT_VERSION, 0)
  buf.writeUInt32LE(footer.kind, 4)
  writeIdentity(buf, 8, footer)
  writeU64(buf, 48, footer.fileBytes)
  writeU64(buf, 56, footer.entries)
  buf.writeUInt32LE(footer.pages, 64)
  buf.writeUInt32LE(footer.blocks, 68)
  writeU64(buf, 72, footer.rawBytes)
  writeU64(buf, 80, footer.minTimeUs)
  writeU64(buf, 88, footer.maxTimeUs)
  footer.sections.forEach((section, i) => {
    const at = SECTION_TABLE_OFFSET + i * SECTION_BYTES
    buf.writeUInt32LE(section.encoding, at)
    buf.writeUInt32LE(section.crc, at + 4)
    writeU64(buf, at + 8, section.offset)
    buf.writeUInt32LE(section.storedBytes, at + 16)
    buf.writeUInt32LE(section.rawBytes, at + 20)
  })
  buf.writeUInt32LE(crc32c(buf, 0, FOOTER_CRC_OFFSET), FOOTER_CRC_OFFSET)
  buf.write(LAYER_END_MAGIC, 248, 'latin1')
  return buf
}

/** `fileBytes` is the file's size; `buf` its last 256 bytes. */
export function decodeLayerFooter(path: string, buf: Buffer, fileBytes: number): LayerFooter {
  const at = fileBytes - LAYER_FOOTER_BYTES
  if (buf.toString('latin1', 248, 256) !== LAYER_END_MAGIC)
    throw corruptLayer(path, at + 248, 'the end mark is missing: the file was cut short or never finished')
  if (crc32c(buf, 0, FOOTER_CRC_OFFSET) !== buf.readUInt32LE(FOOTER_CRC_OFFSET))
    throw corruptLayer(path, at, 'the footer does not match its CRC-32C')
  checkVersion(path, at, buf.readUInt32LE(0))
  const identity = readIdentity(path, buf, 8, at, buf.readUInt32LE(4))
  if (readU64(buf, 48) !== fileBytes)
    throw corruptLayer(
      path,
      at + 48,
      `the footer says the file has ${readU64(buf, 48)} bytes, it has ${fileBytes}`,
    )
  const entries = readU64(buf, 56)
  const rawBytes = readU64(buf, 72)
  const minTimeUs = readU64(buf, 80)
  const maxTimeUs = readU64(buf, 88)
  if (entries < 0 || rawBytes < 0 || minTimeUs < 0 || maxTimeUs < minTimeUs)
    throw corruptLayer(path, at + 56, 'a count or time is out of range')
  const sections: SectionInfo[] = []
  for (let i = 0; i < SECTION_COUNT; i++) {
    const entry = SECTION_TABLE_OFFSET + i * SECTION_BYTES
    const section = {
      encoding: buf.readUInt32LE(entry) as Encoding,
      crc: buf.readUInt32LE(entry + 4),
      offset: readU64(buf, entry + 8),
      storedBytes: buf.readUInt32LE(entry + 16),
      rawBytes: buf.readUInt32LE(entry + 20),
    }
    const empty = section.encoding === Encoding.ZERO && section.storedBytes === 0 && section.rawBytes === 0
    const sized =
      (section.encoding === Encoding.RAW && section.storedBytes === section.rawBytes) ||
      (section.encoding === Encoding.ZSTD && section.storedBytes > 0 && section.rawBytes > 0)
    if (
      !(empty || sized) ||
      section.rawBytes > SECTION_RAW_BYTES_MAX ||
      section.offset < 0 ||
      section.offset + section.storedBytes > at ||
      (sized && section.offset < LAYER_HEADER_BYTES)
    )
      throw corruptLayer(path, at + entry, `section ${i} lies outside the file or has an impossible size`)
    sections.push(section)
  }
  return {
    ...identity,
    fileBytes,
    entries,
    pages: buf.readUInt32LE(64),
    blocks: buf.readUInt32LE(68),
    rawBytes,
    minTimeUs,
    maxTimeUs,
    sections,
  }
}

/** Indexes are read as 32-bit words in the processor's byte order, and layers are little-endian. */
export function assertLittleEndian(): void {
  if (new Uint8Array(new Uint32Array([1]).buffer)[0] !== 1)
    throw internalError('layer files need a little-endian processor')
}
