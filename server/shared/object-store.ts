/**
 * Where durable objects live: layers, manifests, captured files. Objects are immutable; a key is written once and later
 * perhaps deleted. The one conditional operation is put-if-absent, because every store of note has it and nothing
 * beyond it can be relied on; compare-and-swap is built on it in cas-object.ts.
 *
 * A key is 1 to 512 bytes of path segments joined by `/`; a segment has 1 to 128 of `a-z A-Z 0-9 . _ -` and does not
 * begin with a dot. So a key is a relative path on every file system and needs no escaping in any store.
 */
import { invalidError } from './errors.ts'

export interface ObjectInfo {
  readonly key: string
  readonly bytes: number
}

/**
 * A store, to read from. What only reads takes this, so that it works with credentials, or on a file system, that allow
 * nothing else. Every method throws `PalimpsestError`: `retry` when the store could not be reached or is full, `invalid`
 * for a key that is none, `corrupt` or `internal` for what cannot be helped.
 */
export interface ObjectReader {
  /** For messages: what a person would call this store. */
  readonly description: string
  /**
   * Writes the object to a new local file (mode 0640) and syncs it, without holding it in memory, and verifies what can
   * be verified. Its size in bytes; undefined, and no file, if there is no such object. No file after an error either.
   */
  getFile(key: string, localPath: string): Promise<number | undefined>
  /** The whole object, or undefined if there is none. */
  get(key: string): Promise<Buffer | undefined>
  /**
   * `length` bytes from `offset`; fewer only where the object ends; undefined if there is no such object.
   */
  getRange(key: string, offset: number, length: number): Promise<Buffer | undefined>
  /** Size in bytes, or undefined if there is no such object. */
  head(key: string): Promise<number | undefined>
  /** All objects whose key begins with `prefix`, which is empty or ends in `/`; sorted by key. */
  list(prefix: string): Promise<ObjectInfo[]>
  /** A file that holds the object's bytes and may be opened for reading, for stores that have such; else undefined. */
  localPath(key: string): string | undefined
  /** Gives up what is under way, which fails with `retry`, and lets go of connections. */
  close(): void
}

/**
 * One store. After an error of a put the object may or may not exist; to repeat the put is safe, since keys are never
 * reused for other contents.
 */
export interface ObjectStore extends ObjectReader {
  /**
   * Creates the object, atomically and durably. Exactly one of any number of concurrent callers gets true. Whoever gets
   * false may rely on the winner's object being there in full.
   */
  putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean>
  /**
   * The same with the contents of a finished local file, which need not be synced and is gone afterwards (moved if it lies
   * on the same file system); false, and the local file stays, when the key exists.
   */
  putFile(key: string, localPath: string): Promise<boolean>
  /** Removes the object; it is no error if there is none. */
  delete(key: string): Promise<void>
}

const KEY_BYTES_MAX = 512
const SEGMENT = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/

export function isObjectKey(key: string): boolean {
  return key.length > 0 && key.length <= KEY_BYTES_MAX && key.split('/').every(part => SEGMENT.test(part))
}

/** The key itself, or an `invalid` error that quotes it. */
export function checkObjectKey(key: string): string {
  if (isObjectKey(key)) return key
  throw invalidError(
    `object key ${JSON.stringify(key.slice(0, 200))} is not made of 1 to 512 letters, digits, "_", "-", "." in segments joined by "/"`,
  )
}

/** A prefix for `list`: empty, or a key followed by `/`. */
export function checkObjectPrefix(prefix: string): string {
  if (prefix === '' || (prefix.endsWith('/') && isObjectKey(prefix.slice(0, -1)))) return prefix
  throw invalidError(
    `object prefix ${JSON.stringify(prefix.slice(0, 200))} is neither empty nor a key followed by "/"`,
  )
}
