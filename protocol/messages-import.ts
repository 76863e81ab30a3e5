/** Messages that bring a datadir into a page server: tablespaces and pages of an import, and files that are not InnoDB's. */
import { type Codec, checkRelativePath, orEmpty, PATH_BYTES_MAX } from './codec.ts'
import type { Lsn, TimelineId, WriterEpoch } from './ids.ts'
import { MessageType } from './message-types.ts'
import { PAGE_BYTES_MAX, SPACE_NAME_BYTES_MAX } from './messages-page.ts'

/** In the order of their numbers on the wire, which begin with 0. */
export const IMPORT_KINDS = ['full', 'partial'] as const
/** full: the whole datadir. partial: what changed in a stretch of redo that was lost. */
export type ImportKind = (typeof IMPORT_KINDS)[number]

/**
 * Begins an import of pages as of `startLsn`, the server's checkpoint. → ImportBegun
 *
 *     timeline | u64 startLsn | u8 kind (0 full, 1 partial)
 */
export interface ImportBegin {
  readonly type: typeof MessageType.ImportBegin
  readonly timeline: TimelineId
  readonly startLsn: Lsn
  readonly kind: ImportKind
}

export const ImportBeginCodec: Codec<ImportBegin> = {
  type: MessageType.ImportBegin,
  name: 'ImportBegin',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.startLsn)
    w.u8(IMPORT_KINDS.indexOf(m.kind))
  },
  decode(r) {
    const timeline = r.timeline()
    const startLsn = r.lsn('startLsn')
    const number = r.u8('kind')
    const kind = IMPORT_KINDS[number] ?? r.fail(`import kind ${number} is unknown`)
    return { type: MessageType.ImportBegin, timeline, startLsn, kind }
  },
}

/** `u64 session`: names the import in the messages that follow, on any connection. */
export interface ImportBegun {
  readonly type: typeof MessageType.ImportBegun
  readonly session: number
}

export const ImportBegunCodec: Codec<ImportBegun> = {
  type: MessageType.ImportBegun,
  name: 'ImportBegun',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.session)
  },
  decode: r => ({ type: MessageType.ImportBegun, session: r.u64('session') }),
}

/**
 * A tablespace of the datadir. → Ok
 *
 *     u64 session | u32 space | u32 flags | u32 pages | u8 external | string name
 */
export interface ImportSpace {
  readonly type: typeof MessageType.ImportSpace
  readonly session: number
  readonly space: number
  /** FSP_SPACE_FLAGS. */
  readonly flags: number
  /** Size of the file in pages. */
  readonly pages: number
  /** The file lies outside the datadir (DATA DIRECTORY). */
  readonly external: boolean
  readonly name: string
}

export const ImportSpaceCodec: Codec<ImportSpace> = {
  type: MessageType.ImportSpace,
  name: 'ImportSpace',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.session)
    w.u32(m.space)
    w.u32(m.flags)
    w.u32(m.pages)
    w.bool(m.external)
    w.string(m.name, 'name', SPACE_NAME_BYTES_MAX)
  },
  decode: r => ({
    type: MessageType.ImportSpace,
    session: r.u64('session'),
    space: r.u32('space'),
    flags: r.u32('flags'),
    pages: r.u32('pages'),
    external: r.bool('external'),
    name: r.string('name', SPACE_NAME_BYTES_MAX),
  }),
}

/**
 * Pages of one tablespace, whole and with right checksums. → Ok
 *
 *     u64 session | u32 space | u32 pageBytes | u32 0 | u32 count | count × { u32 page | u32 crc }
 *     bulk, sectioned: count pages of pageBytes each
 */
export interface ImportPages {
  readonly type: typeof MessageType.ImportPages
  readonly session: number
  readonly space: number
  /** Physical page size in bytes. */
  readonly pageBytes: number
  /** Pairs: page number, CRC-32C of the page's bytes. */
  readonly pages: Uint32Array
}

export const ImportPagesCodec: Codec<ImportPages> = {
  type: MessageType.ImportPages,
  name: 'ImportPages',
  bulk: 'sectioned',
  encode(w, m) {
    w.u64(m.session)
    w.u32(m.space)
    w.u32(m.pageBytes)
    w.u32(0)
    w.u32(m.pages.length >>> 1)
    w.words(m.pages, m.pages.length & ~1)
  },
  decode(r) {
    const session = r.u64('session')
    const space = r.u32('space')
    const pageBytes = r.u32('pageBytes')
    if (pageBytes < 1024 || pageBytes > PAGE_BYTES_MAX || (pageBytes & (pageBytes - 1)) !== 0)
      r.fail(`pageBytes ${pageBytes} is no page size`)
    r.zeros(4)
    const count = r.count('pages', 8)
    return { type: MessageType.ImportPages, session, space, pageBytes, pages: r.words(count * 2, 'pages') }
  },
  sections(m, visit) {
    for (let i = 0; i < m.pages.length; i += 2) visit((i / 2) * m.pageBytes, m.pageBytes, m.pages[i + 1]!)
  },
}

/**
 * The import is complete: the timeline is readable from `readableFromLsn`. Answered when all of it is durable. → Ok
 *
 *     u64 session | u64 readableFromLsn | u32 count | count × u32 space      tablespaces that exist at that LSN
 */
export interface ImportEnd {
  readonly type: typeof MessageType.ImportEnd
  readonly session: number
  readonly readableFromLsn: Lsn
  readonly spaces: Uint32Array
}

export const ImportEndCodec: Codec<ImportEnd> = {
  type: MessageType.ImportEnd,
  name: 'ImportEnd',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.session)
    w.u64(m.readableFromLsn)
    w.u32(m.spaces.length)
    w.words(m.spaces)
  },
  decode(r) {
    const session = r.u64('session')
    const readableFromLsn = r.lsn('readableFromLsn')
    const count = r.count('spaces', 4)
    return { type: MessageType.ImportEnd, session, readableFromLsn, spaces: r.words(count, 'spaces') }
  },
}

/**
 * A piece of a file that is not InnoDB's, as it is at `lsn`. Pieces come in order from offset 0; with the one that ends
 * at `totalBytes` the file's new version exists. → Ok
 *
 *     timeline | u64 lsn | u64 mtimeMs | u64 offset | u64 totalBytes | u32 mode | string path      bulk: the piece
 */
export interface FilePut {
  readonly type: typeof MessageType.FilePut
  readonly timeline: TimelineId
  readonly lsn: Lsn
  readonly mtimeMs: number
  readonly offset: number
  readonly totalBytes: number
  /** Permission bits, as of stat(2). */
  readonly mode: number
  /** Relative to the datadir. */
  readonly path: string
}

export const FilePutCodec: Codec<FilePut> = {
  type: MessageType.FilePut,
  name: 'FilePut',
  bulk: 'plain',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
    w.u64(m.mtimeMs)
    w.u64(m.offset)
    w.u64(m.totalBytes)
    w.u32(m.mode)
    w.string(m.path)
  },
  decode(r) {
    const message: FilePut = {
      type: MessageType.FilePut,
      timeline: r.timeline(),
      lsn: r.lsn(),
      mtimeMs: r.u64('mtimeMs'),
      offset: r.u64('offset'),
      totalBytes: r.u64('totalBytes'),
      mode: r.u32('mode'),
      path: r.checked('path', checkRelativePath),
    }
    if (message.offset > message.totalBytes)
      r.fail(`offset ${message.offset} is beyond ${message.totalBytes} bytes`)
    if (message.mode > 0o7777) r.fail(`mode 0${message.mode.toString(8)} has more than permission bits`)
    return message
  },
}

/** The file is gone at `lsn`: `timeline | u64 lsn | string path`. → Ok */
export interface FileDelete {
  readonly type: typeof MessageType.FileDelete
  readonly timeline: TimelineId
  readonly lsn: Lsn
  readonly path: string
}

export const FileDeleteCodec: Codec<FileDelete> = {
  type: MessageType.FileDelete,
  name: 'FileDelete',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
    w.string(m.path)
  },
  decode: r => ({
    type: MessageType.FileDelete,
    timeline: r.timeline(),
    lsn: r.lsn(),
    path: r.checked('path', checkRelativePath),
  }),
}

/** The files at `lsn` (0: the newest known): `timeline | u64 lsn`. → one or more FileListReply */
export interface FileList {
  readonly type: typeof MessageType.FileList
  readonly timeline: TimelineId
  readonly lsn: Lsn
}

export const FileListCodec: Codec<FileList> = {
  type: MessageType.FileList,
  name: 'FileList',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
  },
  decode: r => ({ type: MessageType.FileList, timeline: r.timeline(), lsn: r.lsn() }),
}

export interface FileItem {
  /** The LSN at which this version was put. */
  readonly lsn: Lsn
  readonly mtimeMs: number
  readonly totalBytes: number
  readonly mode: number
  readonly path: string
}

/** `u64 lsn | u32 count | count × { u64 lsn | u64 mtimeMs | u64 totalBytes | u32 mode | string path }`. */
export interface FileListReply {
  readonly type: typeof MessageType.FileListReply
  readonly lsn: Lsn
  readonly files: readonly FileItem[]
}

export const FileListReplyCodec: Codec<FileListReply> = {
  type: MessageType.FileListReply,
  name: 'FileListReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.lsn)
    w.u32(m.files.length)
    for (const f of m.files) {
      w.u64(f.lsn)
      w.u64(f.mtimeMs)
      w.u64(f.totalBytes)
      w.u32(f.mode)
      w.string(f.path)
    }
  },
  decode: r => ({
    type: MessageType.FileListReply,
    lsn: r.lsn(),
    files: Array.from({ length: r.count('files', 30) }, () => ({
      lsn: r.lsn(),
      mtimeMs: r.u64('mtimeMs'),
      totalBytes: r.u64('totalBytes'),
      mode: r.u32('mode'),
      path: r.checked('path', checkRelativePath),
    })),
  }),
}

/** One file as it was at `lsn` (0: the newest known): `timeline | u64 lsn | string path`. → one or more FileData */
export interface FileGet {
  readonly type: typeof MessageType.FileGet
  readonly timeline: TimelineId
  readonly lsn: Lsn
  readonly path: string
}

export const FileGetCodec: Codec<FileGet> = {
  type: MessageType.FileGet,
  name: 'FileGet',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
    w.string(m.path)
  },
  decode: r => ({
    type: MessageType.FileGet,
    timeline: r.timeline(),
    lsn: r.lsn(),
    path: r.checked('path', checkRelativePath),
  }),
}

/**
 * The next piece of a file, in order. An empty file has one frame without bulk.
 *
 *     u64 offset | u64 totalBytes | u64 mtimeMs | u32 mode      bulk: the piece
 */
export interface FileData {
  readonly type: typeof MessageType.FileData
  readonly offset: number
  readonly totalBytes: number
  readonly mtimeMs: number
  readonly mode: number
}

export const FileDataCodec: Codec<FileData> = {
  type: MessageType.FileData,
  name: 'FileData',
  bulk: 'plain',
  encode(w, m) {
    w.u64(m.offset)
    w.u64(m.totalBytes)
    w.u64(m.mtimeMs)
    w.u32(m.mode)
  },
  decode: r => ({
    type: MessageType.FileData,
    offset: r.u64('offset'),
    totalBytes: r.u64('totalBytes'),
    mtimeMs: r.u64('mtimeMs'),
    mode: r.u32('mode'),
  }),
}

/**
 * All versions of the files in a directory that were put at LSNs in [fromLsn, toLsn], with their contents; those of one
 * path in the order in which they came. Only names that end in `suffix`, and only files of at most 1 MiB.
 *
 *     timeline | u64 fromLsn | u64 toLsn | string directory | string suffix      → one FileVersion each, then one without a path
 */
export interface FileVersions {
  readonly type: typeof MessageType.FileVersions
  readonly timeline: TimelineId
  readonly fromLsn: Lsn
  readonly toLsn: Lsn
  readonly directory: string
  readonly suffix: string
}

export const FileVersionsCodec: Codec<FileVersions> = {
  type: MessageType.FileVersions,
  name: 'FileVersions',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.fromLsn)
    w.u64(m.toLsn)
    w.string(m.directory)
    w.string(m.suffix)
  },
  decode(r) {
    const message: FileVersions = {
      type: MessageType.FileVersions,
      timeline: r.timeline(),
      fromLsn: r.lsn('fromLsn'),
      toLsn: r.lsn('toLsn'),
      directory: r.checked('directory', checkRelativePath),
      suffix: r.string('suffix', PATH_BYTES_MAX),
    }
    if (message.toLsn < message.fromLsn) r.fail(`LSNs ${message.fromLsn} to ${message.toLsn}`)
    return message
  },
}

/** `u64 lsn | u64 mtimeMs | u32 mode | string path` (empty: that was all)      bulk: the contents */
export interface FileVersion {
  readonly type: typeof MessageType.FileVersion
  readonly lsn: Lsn
  readonly mtimeMs: number
  readonly mode: number
  readonly path: string
}

export const FileVersionCodec: Codec<FileVersion> = {
  type: MessageType.FileVersion,
  name: 'FileVersion',
  bulk: 'plain',
  encode(w, m) {
    w.u64(m.lsn)
    w.u64(m.mtimeMs)
    w.u32(m.mode)
    w.string(m.path)
  },
  decode: r => ({
    type: MessageType.FileVersion,
    lsn: r.lsn(),
    mtimeMs: r.u64('mtimeMs'),
    mode: r.u32('mode'),
    path: r.checked('path', orEmpty(checkRelativePath)),
  }),
}

/**
 * Whose files these are: `timeline | u64 epoch`. From here on this connection's FilePut and FileDelete are those of the
 * timeline's writer of this epoch. → Ok, or fenced if the server has heard of a later one; then so are they.
 */
export interface FileEpoch {
  readonly type: typeof MessageType.FileEpoch
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
}

export const FileEpochCodec: Codec<FileEpoch> = {
  type: MessageType.FileEpoch,
  name: 'FileEpoch',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.epoch)
  },
  decode: r => ({
    type: MessageType.FileEpoch,
    timeline: r.timeline(),
    epoch: r.u64('epoch') as WriterEpoch,
  }),
}
