/**
 * The object store in a bucket of Amazon S3 or of a service that speaks its protocol (Ceph's radosgw is tested).
 *
 * Put-if-absent is PutObject with `If-None-Match: *`, of which services that honour it let exactly one win. Whether this
 * one does is tried when the store is opened: one that overwrote silently would let two page servers both believe that
 * they own a timeline.
 *
 * A success whose reply was lost:
 *
 *     1. attempt: the service creates the object, the connection breaks. 2. attempt: 412, the object exists.
 *
 * So each object carries a random token of the call that made it, as metadata. After a 412 that follows an attempt of
 * unknown outcome the object is looked at: with our token it is ours, and the call has won; otherwise it has lost.
 *
 * Each object also carries the CRC-32C of its contents, which is verified whenever it is read as a whole: whatever
 * happened to it on its way there, at rest, or on its way back.
 *
 * Files beyond `multipartBytes` (PutObject ends at 5 GiB) go up in parts. Some services ignore conditions when an upload
 * in parts is completed, so there the condition is only looked at before and after. That is safe for keys that a single
 * writer makes up, which is what all large objects have; what is contended for is small.
 */
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, open, unlink } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { crc32c } from '../../protocol/crc32c.ts'
import {
  corruptError,
  internalError,
  invalidError,
  type PalimpsestError,
  toPalimpsestError,
} from './errors.ts'
import { DATA_FILE_MODE } from './file-modes.ts'
import {
  checkObjectKey,
  checkObjectPrefix,
  isObjectKey,
  type ObjectInfo,
  type ObjectReader,
  type ObjectStore,
} from './object-store.ts'
import {
  DamagedReply,
  errorName,
  httpStatus,
  isAbsent,
  type Patience,
  type S3Options,
  S3Requests,
} from './s3-requests.ts'

const TOKEN = 'palimpsest-token'
const CRC = 'palimpsest-crc32c'
const NEEDED = 's3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket'
const NEEDED_TO_READ = 's3:GetObject and s3:ListBucket'
const PIECE_BYTES = 1 << 20
const MULTIPART_BYTES = 1 << 30
const PART_BYTES = 64 << 20
/** A first segment that begins with a dot is no object of ours: listings leave it out. */
const PROBE = '.palimpsest-probe'
/** In a single reply; anything larger is fetched into a file. */
const OBJECT_BYTES_MAX = 1 << 30

export interface S3StoreOptions extends S3Options {
  readonly bucket: string
  /** Before every key, without slashes at its ends; may be empty. */
  readonly prefix: string
  /** Files of more bytes are uploaded in parts. */
  readonly multipartBytes?: number | undefined
  /** Size of a part, at least 5 MiB. */
  readonly partBytes?: number | undefined
}

/** Contents on their way up. */
interface Upload {
  readonly bytes: number
  readonly crc: number
  readonly md5: string | undefined
  body(): Uint8Array | Readable
}

/** `s3://bucket/prefix` into its parts. @throws PalimpsestError of kind invalid */
export function parseS3Url(text: string): { bucket: string; prefix: string } {
  const match = /^s3:\/\/([a-z0-9A-Z][a-z0-9A-Z._-]{1,62})(?:\/(.*))?$/.exec(text)
  const prefix = match?.[2]?.replace(/\/$/, '') ?? ''
  if (match === null || (prefix !== '' && !isObjectKey(prefix)))
    throw invalidError(
      `${JSON.stringify(text)} is no object store; write it as s3://bucket/prefix (a bucket's name has 3 to 63 letters, digits, dots and hyphens) or as a directory`,
    )
  return { bucket: match[1]!, prefix }
}

export class S3ObjectStore implements ObjectStore {
  readonly description: string
  readonly #requests: S3Requests
  readonly #bucket: string
  readonly #prefix: string
  readonly #multipartBytes: number
  readonly #partBytes: number

  private constructor(options: S3StoreOptions, needs: string) {
    this.description = `s3://${options.bucket}${options.prefix === '' ? '' : `/${options.prefix}`}`
    this.#requests = new S3Requests(this.description, options, needs)
    this.#bucket = options.bucket
    this.#prefix = options.prefix === '' ? '' : `${options.prefix}/`
    this.#multipartBytes = options.multipartBytes ?? MULTIPART_BYTES
    this.#partBytes = options.partBytes ?? PART_BYTES
  }

  /**
   * Opens the store and tries whether it does what is asked of it.
   *
   * @throws PalimpsestError: `retry` when the service cannot be reached, `invalid` when it ignores conditions,
   *   `internal` when the bucket does not exist or access is denied
   */
  static async open(options: S3StoreOptions): Promise<S3ObjectStore> {
    const store = new S3ObjectStore(options, NEEDED)
    try {
      await store.#probe()
      return store
    } catch (error) {
      store.close()
      throw error
    }
  }

  /** Nothing is tried, so nothing is written: credentials that may only read are enough. Whether they do, the first request shows. */
  static async openToRead(options: S3StoreOptions): Promise<ObjectReader> {
    return new S3ObjectStore(options, NEEDED_TO_READ)
  }

  /** Of several that open the store at once, one creates the probe; none is to be able to replace it. */
  async #probe(): Promise<void> {
    const upload = ofBytes(Buffer.from('Palimpsest keeps its objects here.\n'), this.#requests.checksums)
    if (!(await this.#create(PROBE, upload))) return
    if (await this.#create(PROBE, upload))
      throw invalidError(
        `${this.description}: the service ignores If-None-Match on uploads, so two servers could overwrite each other; use Amazon S3, Ceph, or another that honours it`,
      )
  }

  localPath(): undefined {
    return undefined
  }

  close(): void {
    this.#requests.close()
  }

  // Writing.

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean> {
    return this.#create(checkObjectKey(key), ofBytes(bytes, this.#requests.checksums))
  }

  async putFile(key: string, localPath: string): Promise<boolean> {
    checkObjectKey(key)
    try {
      const upload = await ofFile(localPath, this.#requests.checksums)
      const created =
        upload.bytes > this.#multipartBytes
          ? await this.#createInParts(key, localPath, upload)
          : await this.#create(key, upload)
      if (created) await unlink(localPath)
      return created
    } catch (error) {
      throw toPalimpsestError(error, `putting ${localPath} as ${key} into ${this.description} failed`)
    }
  }

  async #create(key: string, upload: Upload): Promise<boolean> {
    const token = randomBytes(16).toString('hex')
    // Whether an earlier attempt may have come through.
    let unsure = false
    return this.#requests.run(`putting ${key}`, upload.bytes, async signal => {
      try {
        const { ETag } = await this.#requests.client.send(
          new PutObjectCommand({
            ...this.#place(key),
            Body: upload.body(),
            ContentLength: upload.bytes,
            ...(upload.md5 === undefined ? {} : { ContentMD5: upload.md5 }),
            IfNoneMatch: '*',
            Metadata: metadata(token, upload.crc),
          }),
          { abortSignal: signal },
        )
        checkAnswer(ETag)
        return true
      } catch (error) {
        if (httpStatus(error) === 412) return unsure && (await this.#isOurs(key, token, signal))
        const status = httpStatus(error)
        // A refusal is certain; no reply, and the service's own troubles, are not.
        unsure ||= status === undefined || status >= 500 || status === 408
        throw error
      }
    })
  }

  async #isOurs(key: string, token: string, signal: AbortSignal): Promise<boolean> {
    return (await this.#head(key, signal))?.Metadata?.[TOKEN] === token
  }

  async #createInParts(key: string, localPath: string, upload: Upload): Promise<boolean> {
    const requests = this.#requests
    if ((await this.head(key)) !== undefined) return false
    const token = randomBytes(16).toString('hex')
    const { UploadId } = await requests.run(`putting ${key}`, 0, signal =>
      requests.client.send(
        new CreateMultipartUploadCommand({ ...this.#place(key), Metadata: metadata(token, upload.crc) }),
        { abortSignal: signal },
      ),
    )
    try {
      const parts: { ETag: string | undefined; PartNumber: number }[] = []
      for (let at = 0; at < upload.bytes; at += this.#partBytes) {
        const number = parts.length + 1
        const part = await ofFile(
          localPath,
          this.#requests.checksums,
          at,
          Math.min(this.#partBytes, upload.bytes - at),
        )
        const { ETag } = await requests.run(`putting part ${number} of ${key}`, part.bytes, signal =>
          requests.client.send(
            new UploadPartCommand({
              ...this.#place(key),
              UploadId,
              PartNumber: number,
              Body: part.body(),
              ContentLength: part.bytes,
              ...(part.md5 === undefined ? {} : { ContentMD5: part.md5 }),
            }),
            { abortSignal: signal },
          ),
        )
        parts.push({ ETag, PartNumber: number })
      }
      const won = await requests.run(`completing ${key}`, 0, async (signal, number) => {
        try {
          await requests.client.send(
            new CompleteMultipartUploadCommand({
              ...this.#place(key),
              UploadId,
              IfNoneMatch: '*',
              MultipartUpload: { Parts: parts },
            }),
            { abortSignal: signal },
          )
        } catch (error) {
          if (httpStatus(error) === 412) return this.#isOurs(key, token, signal)
          // An earlier attempt has completed it, and its reply was lost.
          if (!(number > 0 && errorName(error) === 'NoSuchUpload')) throw error
        }
        return this.#isOurs(key, token, signal)
      })
      if (!won) await this.#abortParts(key, UploadId)
      return won
    } catch (error) {
      await this.#abortParts(key, UploadId)
      throw error
    }
  }

  /** What fails here is left for the bucket's rule about incomplete uploads. */
  async #abortParts(key: string, UploadId: string | undefined): Promise<void> {
    await this.#requests
      .run(`giving up ${key}`, 0, signal =>
        this.#requests.client.send(new AbortMultipartUploadCommand({ ...this.#place(key), UploadId }), {
          abortSignal: signal,
        }),
      )
      .catch(() => {})
  }

  async delete(key: string): Promise<void> {
    checkObjectKey(key)
    await this.#requests.run(`deleting ${key}`, 0, async signal => {
      try {
        await this.#requests.client.send(new DeleteObjectCommand(this.#place(key)), { abortSignal: signal })
      } catch (error) {
        if (!isAbsent(error)) throw error
      }
    })
  }

  // Reading.

  async get(key: string): Promise<Buffer | undefined> {
    checkObjectKey(key)
    const seen: Seen = { isDamaged: false }
    return this.#requests.run(`getting ${key}`, 0, async (signal, _, patience) => {
      const reply = await this.#open(key, undefined, signal)
      if (reply === undefined) return undefined
      const bytes = await collect(reply, patience)
      this.#verify(key, reply, crc32c(bytes, 0, bytes.length), seen)
      return bytes
    })
  }

  async getRange(key: string, offset: number, length: number): Promise<Buffer | undefined> {
    checkObjectKey(key)
    if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(length) || length < 0)
      throw internalError(`range ${offset}+${length} of ${key}`)
    // A range of no bytes cannot be asked for.
    if (length === 0) return (await this.head(key)) === undefined ? undefined : Buffer.alloc(0)
    return this.#requests.run(`getting ${key}`, 0, async (signal, _, patience) => {
      try {
        const reply = await this.#open(key, `bytes=${offset}-${offset + length - 1}`, signal)
        if (reply === undefined) return undefined
        const bytes = await collect(reply, patience)
        // A service without ranges sends all of it.
        return reply.ContentRange === undefined ? bytes.subarray(offset, offset + length) : bytes
      } catch (error) {
        if (httpStatus(error) === 416) return Buffer.alloc(0)
        throw error
      }
    })
  }

  async getFile(key: string, localPath: string): Promise<number | undefined> {
    checkObjectKey(key)
    let file: FileHandle
    try {
      file = await open(localPath, 'wx', DATA_FILE_MODE)
    } catch (error) {
      throw toPalimpsestError(error, `getting ${key} from ${this.description} failed`)
    }
    let bytes: number | undefined
    try {
      const expected = await this.head(key)
      const seen: Seen = { isDamaged: false }
      if (expected !== undefined)
        bytes = await this.#requests.run(`getting ${key}`, 0, async (signal, _, patience) => {
          const reply = await this.#open(key, undefined, signal)
          if (reply === undefined) return undefined
          await file.truncate(0)
          const { written, crc } = await writeAll(reply, file, patience)
          this.#verify(key, reply, crc, seen)
          return written
        })
      if (bytes !== undefined) await file.sync()
      return bytes
    } catch (error) {
      bytes = undefined
      throw toPalimpsestError(error, `getting ${key} from ${this.description} into ${localPath} failed`)
    } finally {
      await file.close()
      if (bytes === undefined) await unlink(localPath).catch(() => {})
    }
  }

  async #open(
    key: string,
    Range: string | undefined,
    signal: AbortSignal,
  ): Promise<GetObjectCommandOutput | undefined> {
    try {
      const command = new GetObjectCommand({ ...this.#place(key), ...(Range === undefined ? {} : { Range }) })
      const reply = await this.#requests.client.send(command, { abortSignal: signal })
      checkAnswer(reply.ETag)
      return reply
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw error
    }
  }

  /** Objects that others put there have no sum of ours. What was damaged on its way comes whole the next time. */
  #verify(key: string, reply: GetObjectCommandOutput, crc: number, seen: Seen): void {
    const expected = reply.Metadata?.[CRC]
    if (expected === undefined || expected === hex(crc)) return
    if (!seen.isDamaged) {
      seen.isDamaged = true
      throw new DamagedReply(`its CRC-32C is ${hex(crc)} instead of ${expected}`)
    }
    throw corruptError(
      `object ${key} in ${this.description} does not match the CRC-32C that was stored with it (${hex(crc)} instead of ${expected}); restore it from a copy`,
    )
  }

  async head(key: string): Promise<number | undefined> {
    checkObjectKey(key)
    const found = await this.#requests.run(`looking for ${key}`, 0, signal => this.#head(key, signal))
    return found?.ContentLength
  }

  async #head(key: string, signal: AbortSignal) {
    try {
      const reply = await this.#requests.client.send(new HeadObjectCommand(this.#place(key)), {
        abortSignal: signal,
      })
      checkAnswer(reply.ETag)
      return reply
    } catch (error) {
      // The answer to a HEAD has no contents that would tell what it is about.
      if (httpStatus(error) === 404) return undefined
      throw error
    }
  }

  async list(prefix: string): Promise<ObjectInfo[]> {
    const from = this.#prefix + checkObjectPrefix(prefix)
    const found: ObjectInfo[] = []
    let token: string | undefined
    do {
      const before = token
      const reply = await this.#requests.run(`listing ${prefix}`, 0, async signal => {
        const part = await this.#requests.client.send(
          new ListObjectsV2Command({
            Bucket: this.#bucket,
            ...(from === '' ? {} : { Prefix: from }),
            ...(before === undefined ? {} : { ContinuationToken: before }),
          }),
          { abortSignal: signal },
        )
        // An empty listing says that it is one.
        checkAnswer(part.IsTruncated)
        // Half a listing taken for all of it would hide the newest version of a manifest.
        const next = part.NextContinuationToken
        if (part.IsTruncated === true && (!next || next === before))
          throw new DamagedReply('a part of a listing does not say where the next one begins')
        return part
      })
      for (const { Key, Size } of reply.Contents ?? []) {
        const key = Key?.slice(this.#prefix.length) ?? ''
        if (isObjectKey(key)) found.push({ key, bytes: Size ?? 0 })
      }
      token = reply.IsTruncated === true ? reply.NextContinuationToken : undefined
    } while (token !== undefined)
    return found.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0))
  }

  #place(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.#bucket, Key: this.#prefix + key }
  }
}

/** Of the attempts to get an object; one that failed otherwise says nothing about damage. */
interface Seen {
  isDamaged: boolean
}

function metadata(token: string, crc: number): Record<string, string> {
  return { [TOKEN]: token, [CRC]: hex(crc) }
}

function hex(crc: number): string {
  return crc.toString(16).padStart(8, '0')
}

function ofBytes(bytes: Uint8Array, checksums: string): Upload {
  const md5 = checksums === 'md5' ? createHash('md5').update(bytes).digest('base64') : undefined
  return { bytes: bytes.length, crc: crc32c(bytes, 0, bytes.length), md5, body: () => bytes }
}

/** Part of a file (default: all of it), read once for its sums; the body reads it again, at each attempt. */
async function ofFile(path: string, checksums: string, from = 0, length?: number): Promise<Upload> {
  await using file = await open(path, 'r')
  const bytes = length ?? (await file.stat()).size - from
  const md5 = checksums === 'md5' ? createHash('md5') : undefined
  const buffer = Buffer.allocUnsafe(Math.min(PIECE_BYTES, Math.max(1, bytes)))
  let crc = 0
  for (let at = 0; at < bytes; ) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, bytes - at), from + at)
    if (bytesRead === 0) throw internalError(`${path} became shorter while it was read`)
    crc = crc32c(buffer, 0, bytesRead, crc)
    md5?.update(buffer.subarray(0, bytesRead))
    at += bytesRead
  }
  const body = () =>
    bytes === 0
      ? Buffer.alloc(0)
      : createReadStream(path, { start: from, end: from + bytes - 1, highWaterMark: PIECE_BYTES })
  return { bytes, crc, md5: md5?.digest('base64'), body }
}

/** All of a reply's contents. */
async function collect(reply: GetObjectCommandOutput, patience: Patience): Promise<Buffer> {
  const length = reply.ContentLength ?? 0
  if (length > OBJECT_BYTES_MAX) throw tooLarge(length)
  const pieces: Buffer[] = []
  let bytes = 0
  patience.moved(0)
  for await (const piece of reply.Body as AsyncIterable<Buffer>) {
    patience.moved(piece.length)
    pieces.push(piece)
    bytes += piece.length
    // Without a length that is told beforehand.
    if (bytes > OBJECT_BYTES_MAX) throw tooLarge(bytes)
  }
  checkLength(reply, bytes)
  return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces, bytes)
}

function tooLarge(bytes: number): PalimpsestError {
  return internalError(`an object of ${bytes} bytes is too large to be held in memory`)
}

async function writeAll(
  reply: GetObjectCommandOutput,
  file: FileHandle,
  patience: Patience,
): Promise<{ written: number; crc: number }> {
  let written = 0
  let crc = 0
  patience.moved(0)
  for await (const piece of reply.Body as AsyncIterable<Buffer>) {
    patience.hold()
    crc = crc32c(piece, 0, piece.length, crc)
    for (let at = 0; at < piece.length; ) {
      const { bytesWritten } = await file.write(piece, at, piece.length - at, written)
      at += bytesWritten
      written += bytesWritten
    }
    patience.moved(piece.length)
  }
  checkLength(reply, written)
  return { written, crc }
}

/** What every S3 service tells is missing: this is the page of a proxy or portal in between, with a status of 200. */
function checkAnswer(told: unknown): void {
  if (told === undefined) throw new DamagedReply('what answered is no S3 service')
}

function checkLength(reply: GetObjectCommandOutput, bytes: number): void {
  if (reply.ContentLength !== undefined && reply.ContentLength !== bytes)
    throw new DamagedReply(`${bytes} bytes came of ${reply.ContentLength}`)
}
