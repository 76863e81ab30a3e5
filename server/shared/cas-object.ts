/**
 * A small object that is replaced as a whole by compare-and-swap, on nothing more than put-if-absent.
 *
 * Version n of the object is the immutable object `<prefix>/<n, 12 digits>`; the current version is the one with the
 * highest number. To replace version n is to create n + 1.
 *
 *     commit:  1. putIfAbsent(n + 1). If somebody else's is there: lost.
 *              2. list. If there is a number above n + 1: lost (see below); remove ours.
 *              3. we are n + 1. Versions at or below n + 1 - KEPT are deleted.
 *     load:    1. list, take the highest number. 2. get it. If it is gone: it was replaced at least KEPT times meanwhile;
 *              again from 1.
 *
 * Why step 2 of commit: a process that slept since version n may find n + 1 absent because it came and went: it was
 * created, replaced and cleaned away. But what is cleaned away has a successor, which a listing shows. So a writer that
 * created n + 1 and sees nothing above it is the only one.
 *
 * Why a reply that was lost does no harm: if putIfAbsent says "exists", the object there is compared with ours. The bytes
 * of every version hold a token that only its writer knows, so equal bytes are our own earlier attempt.
 *
 * What a crash leaves behind: before 1, nothing. Between 1 and 2 or 3, a new version that nobody was told of; who loads
 * next finds it, complete. A stale writer that dies between 1 and 2 leaves a number below the highest, which nobody reads
 * and the next cleaning removes.
 *
 * Stored, 48 bytes before the contents: magic "PLPSCAS1", u32 length of the contents, u32 CRC-32C of token and contents,
 * 16 bytes token, u64 number, u64 reserved.
 */
import { randomBytes } from 'node:crypto'
import { crc32c } from '../../protocol/crc32c.ts'
import { corruptError, fencedError, internalError, retryError } from './errors.ts'
import type { ObjectReader, ObjectStore } from './object-store.ts'

const MAGIC = 'PLPSCAS1'
const HEADER_BYTES = 48
const NUMBER_DIGITS = 12
/** Superseded versions that stay, for people who look into what happened. */
export const CAS_VERSIONS_KEPT = 4
const LOAD_ATTEMPTS = 20

export interface CasVersion {
  /** 1 for the first. */
  readonly number: number
  readonly bytes: Buffer
}

export class CasObject {
  readonly #store: ObjectStore
  readonly #prefix: string
  readonly #what: string
  #current = 0
  /** Numbers below the current one that may still be there. */
  #older: number[] = []
  /** Attempts at the next version whose outcome is not known, by their tokens. */
  #pending: { number: number; tokens: Buffer[] } | undefined

  /** `prefix` is a key without a trailing slash; `what` names the object in messages. */
  constructor(store: ObjectStore, prefix: string, what: string) {
    this.#store = store
    this.#prefix = prefix
    this.#what = what
  }

  /** Number of the version that was loaded or committed last; 0 if none. */
  get number(): number {
    return this.#current
  }

  key(number: number): string {
    return keyOf(this.#prefix, number)
  }

  /** The current version, or undefined if the object does not exist yet. */
  async load(): Promise<CasVersion | undefined> {
    const found = await loadCas(this.#store, this.#prefix, this.#what)
    this.#current = found?.number ?? 0
    this.#older = found?.older ?? []
    return found && { number: found.number, bytes: found.bytes }
  }

  /**
   * Makes `contents` the version after the one loaded or committed last. Throws `fenced` when somebody else did so
   * first: whoever thought to own the object does not. After any other error it is not known whether the version came
   * into being: commit the same or newer contents again with this instance, or load.
   */
  async commit(contents: Uint8Array): Promise<number> {
    const number = this.#current + 1
    if (number >= 10 ** NUMBER_DIGITS) throw internalError(`${this.#what} has been replaced too often`)
    const key = this.key(number)
    const stored = encode(contents, number)
    let tokens = [stored.subarray(16, 32)]
    if (this.#pending !== undefined && this.#pending.number === number)
      tokens = [...tokens, ...this.#pending.tokens]
    // Remembered before the attempt, since its outcome may stay unknown.
    this.#pending = { number, tokens }
    if (!(await this.#store.putIfAbsent(key, stored))) {
      const there = await this.#store.get(key)
      if (there === undefined) throw this.#lost(number)
      const mine = tokens.some(token => there.subarray(16, 32).equals(token))
      if (!mine) throw this.#lost(number)
      if (!there.equals(stored)) {
        // An earlier attempt of ours with other contents came through after all: go on from it.
        decode(this.#store, key, this.#what, there, number)
        this.#advance(number)
        return this.commit(contents)
      }
    }
    const numbers = await listNumbers(this.#store, this.#prefix)
    if (numbers.some(n => n > number)) {
      await this.#store.delete(key)
      throw this.#lost(number)
    }
    this.#older = numbers.filter(n => n < number)
    this.#advance(number)
    await this.#clean()
    return number
  }

  #advance(number: number): void {
    this.#current = number
    this.#pending = undefined
  }

  #lost(number: number): Error {
    return fencedError(
      `${this.#what}: version ${number} was created by another process; this one no longer owns it and must stop`,
    )
  }

  /** A failure to clean is no failure of the commit: the next one tries again. */
  async #clean(): Promise<void> {
    const keep = this.#current - CAS_VERSIONS_KEPT
    for (const number of this.#older.filter(n => n <= keep))
      try {
        await this.#store.delete(this.key(number))
      } catch {
        return
      }
  }
}

/** The current version of such an object, for whoever only reads; with the numbers below it that were still there. */
export async function loadCas(
  store: ObjectReader,
  prefix: string,
  what: string,
): Promise<(CasVersion & { readonly older: number[] }) | undefined> {
  for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
    const numbers = await listNumbers(store, prefix)
    const number = numbers.pop()
    if (number === undefined) return undefined
    const key = keyOf(prefix, number)
    const stored = await store.get(key)
    if (stored !== undefined)
      return { number, bytes: decode(store, key, what, stored, number), older: numbers }
  }
  throw retryError(`${what} is being replaced faster than it can be read; try again`)
}

function keyOf(prefix: string, number: number): string {
  return `${prefix}/${String(number).padStart(NUMBER_DIGITS, '0')}`
}

/** Numbers that exist, ascending. What is not a number of ours is none of our business. */
async function listNumbers(store: ObjectReader, under: string): Promise<number[]> {
  const prefix = `${under}/`
  const numbers: number[] = []
  for (const { key } of await store.list(prefix)) {
    const name = key.slice(prefix.length)
    if (/^[0-9]{12}$/.test(name)) numbers.push(Number(name))
  }
  return numbers.sort((a, b) => a - b)
}

function decode(store: ObjectReader, key: string, what: string, stored: Buffer, number: number): Buffer {
  const where = `${what}, object ${key} in ${store.description}`
  if (stored.length < HEADER_BYTES || stored.toString('latin1', 0, 8) !== MAGIC)
    throw corruptError(`${where}: this is no versioned object`)
  const length = stored.readUInt32LE(8)
  if (length !== stored.length - HEADER_BYTES)
    throw corruptError(`${where}: ${stored.length - HEADER_BYTES} bytes of contents instead of ${length}`)
  if (crc32c(stored, 16, stored.length) !== stored.readUInt32LE(12))
    throw corruptError(`${where}: the contents do not match their CRC-32C`)
  if (Number(stored.readBigUInt64LE(32)) !== number)
    throw corruptError(`${where}: holds another version's bytes`)
  return stored.subarray(HEADER_BYTES)
}

function encode(contents: Uint8Array, number: number): Buffer {
  const stored = Buffer.alloc(HEADER_BYTES + contents.length)
  stored.write(MAGIC, 0, 'latin1')
  stored.writeUInt32LE(contents.length, 8)
  randomBytes(16).copy(stored, 16)
  stored.writeBigUInt64LE(BigInt(number), 32)
  stored.set(contents, HEADER_BYTES)
  stored.writeUInt32LE(crc32c(stored, 16, stored.length), 12)
  return stored
}
