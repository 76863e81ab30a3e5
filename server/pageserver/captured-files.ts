/**
 * The files of a datadir that are not InnoDB's (table definitions, Aria and MyISAM tables, …), versioned by LSN.
 *
 * A version of a path holds from its LSN on, until the next one; a deletion is a version without contents. Contents of
 * up to 1 KiB lie in the index itself. Larger ones are cut into chunks of 256 KiB, each an object under the SHA-256 of
 * its bytes: what was there before, in whatever file or version, is not stored again, so that a log that is captured
 * each time it has grown costs its last chunk.
 *
 * The index is held in memory; what is new is saved as an object that the manifest lists (`save`), and after some dozens
 * of these all of it as one snapshot. Chunks are durable before `put` returns, the index when `save` has: only then
 * may a caller be told that a file is safe. A crash in between leaves chunks that nobody refers to and that the next
 * capture of the same contents finds again.
 *
 * An object of the index: `varint count`, then per version: text path, varint LSN, u8 kind (0 deleted, 1 inline, 2
 * chunks), and unless deleted: varint mode, varint mtime in ms, varint size in bytes, then the bytes or, per chunk, its
 * 32 byte hash. A chunk: u8 encoding (1 raw, 2 zstd) and the bytes.
 */
import { createHash } from 'node:crypto'
import { LSN_MAX, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import { corruptError, invalidError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { Turns } from '../shared/turns.ts'
import { zstdCompress, zstdDecompress } from '../shared/zstd.ts'
import { Encoding } from './layer-format.ts'
import { type Manifest, type ManifestStore, timelineKeys } from './manifest.ts'
import { openSealedObject, sealObject } from './sealed-object.ts'
import { ByteReader, ByteWriter } from './varint.ts'

export const FILE_CHUNK_BYTES = 256 << 10
const FILE_INLINE_BYTES_MAX = 1024
/** Objects of the index after which they are merged into a snapshot. */
const INDEX_OBJECTS_MAX = 32
/** Uploads under way at a time: each may hold a chunk in memory. */
const UPLOADS_MAX = 64
const PATH_BYTES_MAX = 1024
const FILE_BYTES_MAX = 2 ** 44
/** Larger files are left out where all versions are asked for. */
const VERSION_BYTES_MAX = 1 << 20
const HASH_BYTES = 32
const CHUNK_ZSTD_LEVEL = 1
const MAGIC = 'PLPSFILE'
const FORMAT_VERSION = 1
const KIND = { DELETED: 0, INLINE: 1, CHUNKS: 2 } as const

export interface FileVersion {
  readonly path: string
  readonly lsn: Lsn
  /** Permission bits. */
  readonly mode: number
  readonly mtimeMs: number
  readonly totalBytes: number
}

interface StoredVersion {
  readonly lsn: Lsn
  readonly mode: number
  readonly mtimeMs: number
  readonly totalBytes: number
  /** Undefined: the file was deleted. */
  readonly content: { readonly inline: Buffer } | { readonly hashes: Buffer } | undefined
}

interface Upload {
  readonly version: FileVersion
  received: number
  /** Bytes of the chunk under way; for a small file all there is. */
  pending: Buffer[]
  pendingBytes: number
  readonly hashes: Buffer[]
  /** Pieces are worked off one after the other, also when the next one arrives before the last is stored. */
  tail: Promise<void>
}

/**
 * `path` itself, or an `invalid` error: it must be relative to the datadir, with `/` between components none of which is
 * empty, `.` or `..`, without control characters or backslashes, and of at most 1024 bytes.
 */
export function checkFilePath(path: string): string {
  const parts = path.split('/')
  const bad =
    path.length === 0 ||
    Buffer.byteLength(path, 'utf8') > PATH_BYTES_MAX ||
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
    /[\u0000-\u001f\u007f\\]/.test(path) ||
    !path.isWellFormed() ||
    parts.some(part => part === '' || part === '.' || part === '..')
  if (bad) throw invalidError(`${JSON.stringify(path.slice(0, 200))} is no path of a file within a datadir`)
  return path
}

export class CapturedFiles {
  readonly #store: ObjectStore
  readonly #timeline: TimelineId
  readonly #ancestors: readonly TimelineId[]
  /** Ascending by LSN. */
  readonly #files = new Map<string, StoredVersion[]>()
  readonly #uploads = new Map<string, Upload>()
  /** Not yet saved, in the order in which they came. */
  #unsaved: { path: string; version: StoredVersion }[] = []
  readonly #saves = new Turns()
  readonly #puts = new Set<Promise<boolean>>()
  #isClosed = false

  /** `ancestors`: timelines whose chunks may be referred to as well, the nearest first. */
  constructor(store: ObjectStore, timeline: TimelineId, ancestors: readonly TimelineId[] = []) {
    this.#store = store
    this.#timeline = timeline
    this.#ancestors = ancestors
  }

  /** The files that the manifest knows of. */
  static async load(store: ObjectStore, manifest: Manifest): Promise<CapturedFiles> {
    const ancestors = manifest.ancestors.map(({ timeline }) => timeline)
    const files = new CapturedFiles(store, manifest.timeline, ancestors)
    for (const { key } of manifest.files) {
      const where = `index of captured files ${key} in ${store.description}`
      const sealed = await store.get(key)
      if (sealed === undefined)
        throw corruptError(`${where} is missing; restore it from a copy of the object store`)
      openSealedObject(MAGIC, FORMAT_VERSION, sealed, where, contents => files.#decode(contents))
    }
    return files
  }

  /** Versions that `save` has not made durable yet. */
  get unsaved(): number {
    return this.#unsaved.length
  }

  /** Nothing is taken any more; resolves when what was under way has ended. For a timeline that is being deleted. */
  async close(): Promise<void> {
    this.#isClosed = true
    while (this.#puts.size > 0) await Promise.allSettled(this.#puts)
    await this.#saves.done()
  }

  /**
   * Takes a piece of a file. Pieces come in order, the first at offset 0 (which begins the upload anew if it was under way);
   * the one that reaches `totalBytes` completes the version, and true is returned. Its chunks are durable then.
   */
  async put(version: FileVersion, offset: number, piece: Uint8Array): Promise<boolean> {
    if (this.#isClosed) throw invalidError(`file ${version.path} of a timeline that is being deleted`)
    const taken = this.#put(version, offset, piece)
    this.#puts.add(taken)
    try {
      return await taken
    } finally {
      this.#puts.delete(taken)
    }
  }

  async #put(version: FileVersion, offset: number, piece: Uint8Array): Promise<boolean> {
    checkFilePath(version.path)
    const { path, totalBytes } = version
    let upload = this.#uploads.get(path)
    if (offset === 0) {
      if (totalBytes > FILE_BYTES_MAX) throw invalidError(`file ${path} of ${totalBytes} bytes is too large`)
      if (upload === undefined && this.#uploads.size >= UPLOADS_MAX) this.#dropOldestUpload()
      upload = { version, received: 0, pending: [], pendingBytes: 0, hashes: [], tail: Promise.resolve() }
      this.#uploads.set(path, upload)
    }
    if (
      upload === undefined ||
      upload.received !== offset ||
      upload.version.totalBytes !== totalBytes ||
      upload.version.lsn !== version.lsn ||
      offset + piece.length > totalBytes
    ) {
      this.#uploads.delete(path)
      throw invalidError(
        `file ${path}: a piece at byte ${offset} of ${totalBytes} where byte ${upload?.received ?? 0} was expected; begin again`,
      )
    }
    upload.received += piece.length
    const last = upload.received === totalBytes
    // The caller's memory is reused after this call; what stays is copied.
    const copy = Buffer.from(piece)
    const current = upload
    const step = current.tail.then(() => this.#take(current, copy))
    current.tail = step
    try {
      await step
    } catch (error) {
      if (this.#uploads.get(path) === upload) this.#uploads.delete(path)
      throw error
    }
    if (!last) return false
    let content: StoredVersion['content']
    if (totalBytes <= FILE_INLINE_BYTES_MAX) content = { inline: Buffer.concat(upload.pending) }
    else {
      if (upload.pendingBytes > 0) await this.#putChunk(upload)
      content = { hashes: Buffer.concat(upload.hashes) }
    }
    if (this.#uploads.get(path) === upload) this.#uploads.delete(path)
    const { lsn, mode, mtimeMs } = version
    this.#add(path, { lsn, mode, mtimeMs, totalBytes, content })
    return true
  }

  /** The file does not exist from this LSN on. No error if it never did. */
  remove(path: string, lsn: Lsn): void {
    checkFilePath(path)
    this.#uploads.delete(path)
    if (this.#at(path, lsn)?.content === undefined) return
    this.#add(path, { lsn, mode: 0, mtimeMs: 0, totalBytes: 0, content: undefined })
  }

  async #take(upload: Upload, piece: Buffer): Promise<void> {
    for (let at = 0; at < piece.length; ) {
      const take = Math.min(piece.length - at, FILE_CHUNK_BYTES - upload.pendingBytes)
      upload.pending.push(piece.subarray(at, at + take))
      upload.pendingBytes += take
      at += take
      if (upload.pendingBytes === FILE_CHUNK_BYTES) await this.#putChunk(upload)
    }
  }

  /** Whoever began an upload and went away has to begin again. */
  #dropOldestUpload(): void {
    const [oldest] = this.#uploads.keys()
    if (oldest !== undefined) this.#uploads.delete(oldest)
  }

  async #putChunk(upload: Upload): Promise<void> {
    const bytes = upload.pending.length === 1 ? upload.pending[0]! : Buffer.concat(upload.pending)
    upload.pending = []
    upload.pendingBytes = 0
    const hash = createHash('sha256').update(bytes).digest()
    const place = upload.hashes.push(hash) - 1
    // Most often it is the chunk that the version before has at the same place; then the store need not be asked.
    const before = this.#files.get(upload.version.path)?.at(-1)?.content
    if (before !== undefined && 'hashes' in before && hash.equals(hashAt(before.hashes, place))) return
    const key = timelineKeys.chunk(this.#timeline, hash.toString('hex'))
    if ((await this.#store.head(key)) !== undefined) return
    const packed = zstdCompress(bytes, CHUNK_ZSTD_LEVEL)
    const pays = packed.length < bytes.length
    const head = Buffer.from([pays ? Encoding.ZSTD : Encoding.RAW])
    await this.#store.putIfAbsent(key, Buffer.concat([head, pays ? packed : bytes]))
  }

  #add(path: string, version: StoredVersion): void {
    if (this.#insert(path, version)) this.#unsaved.push({ path, version })
  }

  /** False if the path has just this content and mode already at that LSN. */
  #insert(path: string, version: StoredVersion): boolean {
    let versions = this.#files.get(path)
    if (versions === undefined) {
      versions = []
      this.#files.set(path, versions)
    }
    const place = placeOf(versions, version.lsn)
    const current = versions[place]
    if (current !== undefined && sameContent(current, version)) return false
    // Of several with one LSN the last one holds, but none is forgotten: see `versions`.
    versions.splice(place + 1, 0, version)
    return true
  }

  #at(path: string, lsn: Lsn): StoredVersion | undefined {
    const versions = this.#files.get(path)
    return versions?.[placeOf(versions, lsn)]
  }

  /** All files that exist at the LSN, by path. */
  list(lsn: Lsn): FileVersion[] {
    const found: FileVersion[] = []
    for (const path of this.#files.keys()) {
      const version = this.get(path, lsn)
      if (version !== undefined) found.push(version)
    }
    return found.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0))
  }

  /** The version of the file that holds at the LSN, or undefined. */
  get(path: string, lsn: Lsn): FileVersion | undefined {
    const version = this.#at(path, lsn)
    if (version?.content === undefined) return undefined
    const { mode, mtimeMs, totalBytes } = version
    return { path, lsn: version.lsn, mode, mtimeMs, totalBytes }
  }

  /**
   * All versions of the files of a directory that were put at LSNs in [from, to], with their contents, for those who
   * know better than the LSN which of several belongs to a moment (table definitions amid DDL). Names that end in
   * `suffix`, files of at most 1 MiB.
   */
  async *versions(
    directory: string,
    suffix: string,
    from: Lsn,
    to: Lsn,
  ): AsyncGenerator<{ readonly file: FileVersion; readonly content: Buffer }> {
    for (const [path, versions] of this.#files) {
      if (!path.endsWith(suffix) || path.lastIndexOf('/') !== directory.length || !path.startsWith(directory))
        continue
      for (const version of versions.slice()) {
        const { lsn, mode, mtimeMs, totalBytes, content } = version
        if (content === undefined || lsn < from || lsn > to || totalBytes > VERSION_BYTES_MAX) continue
        const pieces: Buffer[] = []
        for await (const piece of this.#pieces(path, version)) pieces.push(piece)
        yield { file: { path, lsn, mode, mtimeMs, totalBytes }, content: Buffer.concat(pieces) }
      }
    }
  }

  /** The contents of that version, in pieces of at most 256 KiB. Throws `corrupt` when a chunk is missing or damaged. */
  async *read(path: string, lsn: Lsn): AsyncGenerator<Buffer> {
    const version = this.#at(path, lsn)
    if (version?.content === undefined) throw invalidError(`there is no file ${path} at LSN ${lsn}`, lsn)
    yield* this.#pieces(path, version)
  }

  async *#pieces(path: string, version: StoredVersion): AsyncGenerator<Buffer> {
    if (version.content === undefined) return
    if ('inline' in version.content) {
      if (version.content.inline.length > 0) yield version.content.inline
      return
    }
    const { hashes } = version.content
    for (let chunk = 0; chunk * HASH_BYTES < hashes.length; chunk++) {
      const bytes = Math.min(FILE_CHUNK_BYTES, version.totalBytes - chunk * FILE_CHUNK_BYTES)
      yield await this.#readChunk(hashAt(hashes, chunk), bytes, path)
    }
  }

  async #readChunk(hash: Buffer, bytes: number, path: string): Promise<Buffer> {
    const key = timelineKeys.chunk(this.#timeline, hash.toString('hex'))
    const where = `chunk ${key} of file ${path} in ${this.#store.description}`
    let stored = await this.#store.get(key)
    for (const ancestor of this.#ancestors)
      stored ??= await this.#store.get(timelineKeys.chunk(ancestor, hash.toString('hex')))
    if (stored === undefined)
      throw corruptError(`${where} is missing; restore it from a copy of the object store`)
    let raw: Buffer
    try {
      raw = stored[0] === Encoding.ZSTD ? zstdDecompress(stored.subarray(1), bytes) : stored.subarray(1)
    } catch (error) {
      throw corruptError(`${where}: ${(error as Error).message}`, undefined, error)
    }
    if (raw.length !== bytes || !createHash('sha256').update(raw).digest().equals(hash))
      throw corruptError(`${where} does not have the bytes that its name stands for; restore it from a copy`)
    return raw
  }

  /**
   * Makes everything put or removed so far durable: an object with what is new, and a manifest that lists it. Calls are
   * carried out one after the other; one that finds nothing new does nothing.
   */
  save(manifests: ManifestStore): Promise<void> {
    return this.#saves.run(() => this.#save(manifests))
  }

  async #save(manifests: ManifestStore): Promise<void> {
    const { files } = manifests.current
    const fresh = this.#unsaved.slice()
    if (fresh.length === 0) return
    const whole = files.length >= INDEX_OBJECTS_MAX
    const contents = whole ? this.#encodeAll() : encode(fresh)
    const key = manifests.objectKey(whole ? 'files-snapshot' : 'files')
    const sealed = sealObject(MAGIC, FORMAT_VERSION, contents)
    await this.#store.putIfAbsent(key, sealed)
    const kind = whole ? ('snapshot' as const) : ('delta' as const)
    const entry = { key, bytes: sealed.length, kind }
    await manifests.update(current => ({ ...current, files: whole ? [entry] : [...current.files, entry] }))
    // Others may have been added meanwhile; they came behind.
    this.#unsaved.splice(0, fresh.length)
    // What cannot be deleted now is an orphan, which the next start removes; the files are safe all the same.
    if (whole) for (const replaced of files) await this.#store.delete(replaced.key).catch(() => {})
  }

  /** All versions up to and including `lsn`, as an object of the index that a branch begins with. */
  sealUpTo(lsn: Lsn): Buffer {
    return sealObject(MAGIC, FORMAT_VERSION, this.#encodeAll(lsn))
  }

  #encodeAll(upTo: Lsn = LSN_MAX): Buffer {
    const all: { path: string; version: StoredVersion }[] = []
    for (const [path, versions] of this.#files)
      for (const version of versions) if (version.lsn <= upTo) all.push({ path, version })
    return encode(all)
  }

  #decode(contents: Buffer): void {
    const input = new ByteReader(contents)
    const count = input.varint()
    for (let i = 0; i < count; i++) {
      const path = checkFilePath(input.text(PATH_BYTES_MAX))
      const lsn = input.varint() as Lsn
      const kind = input.u8()
      if (lsn > LSN_MAX || kind > KIND.CHUNKS) throw new Error(`version ${i} is none`)
      if (kind === KIND.DELETED) {
        this.#insert(path, { lsn, mode: 0, mtimeMs: 0, totalBytes: 0, content: undefined })
        continue
      }
      const mode = input.varint()
      const mtimeMs = input.varint()
      const totalBytes = input.varint()
      if (kind === KIND.INLINE && totalBytes > FILE_INLINE_BYTES_MAX)
        throw new Error(`version ${i} is too long`)
      const content =
        kind === KIND.INLINE
          ? { inline: input.raw(totalBytes) }
          : { hashes: input.raw(Math.ceil(totalBytes / FILE_CHUNK_BYTES) * HASH_BYTES) }
      this.#insert(path, { lsn, mode, mtimeMs, totalBytes, content })
    }
    input.end()
  }
}

function encode(versions: readonly { path: string; version: StoredVersion }[]): Buffer {
  const out = new ByteWriter(versions.length * 64 + 16)
  out.varint(versions.length)
  for (const { path, version } of versions) {
    const { lsn, mode, mtimeMs, totalBytes, content } = version
    out.text(path)
    out.varint(lsn)
    out.u8(content === undefined ? KIND.DELETED : 'inline' in content ? KIND.INLINE : KIND.CHUNKS)
    if (content === undefined) continue
    out.varint(mode)
    out.varint(Math.max(0, Math.floor(mtimeMs)))
    out.varint(totalBytes)
    out.raw('inline' in content ? content.inline : content.hashes)
  }
  return out.bytes()
}

/** Place of the last version at or before the LSN, or -1. */
function placeOf(versions: readonly StoredVersion[], lsn: Lsn): number {
  let place = versions.length - 1
  while (place >= 0 && versions[place]!.lsn > lsn) place--
  return place
}

/** Undefined contents are equal to each other; a changed time alone makes no version. */
function sameContent(a: StoredVersion, b: StoredVersion): boolean {
  if (a.content === undefined || b.content === undefined) return a.content === b.content
  if (a.mode !== b.mode || a.totalBytes !== b.totalBytes) return false
  if ('inline' in a.content) return 'inline' in b.content && a.content.inline.equals(b.content.inline)
  return 'hashes' in b.content && a.content.hashes.equals(b.content.hashes)
}

function hashAt(hashes: Buffer, chunk: number): Buffer {
  return hashes.subarray(chunk * HASH_BYTES, (chunk + 1) * HASH_BYTES)
}
