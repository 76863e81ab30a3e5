/**
 * Follows `ib_logfile0`, the ring that a running server writes, and hands out whole mini-transactions in LSN order.
 *
 * Nobody tells a reader how far the server has written, so that is found by looking: a mini-transaction is there when
 * its records, its sequence bit and its CRC-32C are. Three properties of InnoDB make this exact (log0log.cc,
 * buf0flu.cc):
 *
 *   1. After the last byte written stands a zero, or what the lap before left there, whose sequence bit is the other one.
 *   2. The server never writes beyond checkpoint + capacity. So bytes read at `lsn` are of this lap, or of the next
 *      one and then have the other sequence bit, as long as the checkpoint that is read *after* them is at most
 *      `lsn` + capacity. Beyond that the reader was lapped twice and nothing that it read can be believed.
 *   3. What lies below the checkpoint was written completely. So if no mini-transaction is found at an LSN below the
 *      checkpoint, it was overwritten.
 *
 * The last bytes handed out are read again with every look. They can only change when the ring overtook the reader or
 * when the server lost redo that it had written but not yet synced (a crash of the operating system): then its history
 * and ours have parted, which is an error and no gap.
 *
 * innodb_log_file_size may change, at run time or at startup: the server then writes everything to the old file up to
 * the moment when it renames a new one over it. The reader keeps the old file open, reads it to its end, and goes on
 * in the new one.
 */
import { type FileHandle, stat } from 'node:fs/promises'
import {
  LOG_START_OFFSET,
  type LogCheckpoint,
  type LogFileHead,
  LogGeometry,
  parseLogFileHead,
} from '../../parser/log-file.ts'
import { describeScanResult, MTR_SCAN_BYTES_MAX, MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { read4 } from '../../parser/page-format.ts'
import { CorruptRedoError } from '../../parser/record-decoder.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { explainSystemError, isMissing } from '../datadir/errors.ts'
import { openServerFile } from '../datadir/server-files.ts'
import { corruptError, PalimpsestError } from '../shared/errors.ts'
import { BLOCK_BYTES_MOST, StaleGuard } from './stale-guard.ts'

/** Bytes asked of the file at a time; a chunk has at most so many plus one mini-transaction. */
export const CHUNK_BYTES_MAX = 1 << 20
/** The first look when nothing was there before: one block of the log. */
const PEEK_BYTES = 4096
/** So much of what was handed out is compared with every look: the end of a mini-transaction and its checksum. */
const CONTINUITY_BYTES = 32
/** CRC-32C at the end of a mini-transaction; it leaves out the sequence bit. */
const CHECKSUM_BYTES = 4
/**
 * A mini-transaction that repeats an earlier one is believed after so long: the server writes out its log buffer every
 * second (innodb_flush_log_at_timeout), and with it whatever has the place.
 */
const SUSPECT_MS = 3000
const SUSPECT_LOOK_BYTES = 65536
/** Redo before the position that is compared with when nothing else is known. */
const PRELOAD_BYTES = 1 << 20
/** How often the path is looked at for a new file while the old one still grows. */
const REPLACED_CHECK_MS = 100
/** Bit 7 of a mini-transaction's first byte: its first record is about a file (mtr0types.h). */
const FILE_RECORD = 0x80
/** How often an end of the log is checked to be one. */
const IDLE_CHECK_MS = 50
/** A head that does not parse may be in the middle of being written. */
const HEAD_ATTEMPTS = 20
const HEAD_RETRY_MS = 10

export type TailStep =
  /** Whole mini-transactions, [beginLsn, endLsn). `bytes` belongs to the caller. */
  | {
      readonly kind: 'chunk'
      readonly beginLsn: Lsn
      readonly endLsn: Lsn
      readonly bytes: Uint8Array
      /** Pairs of offsets in `bytes`, start and end, of the mini-transactions that begin with a record about files. */
      readonly fileMtrs: readonly number[]
      /** When this was read, there was no more. */
      readonly atEnd: boolean
    }
  /** The end of the log, for now. */
  | { readonly kind: 'idle' }
  /** The log cannot be made sense of at this moment; look again. */
  | { readonly kind: 'wait' }
  /** The redo at the reader's position is gone. The log is to be followed again from a checkpoint (`restartAt`). */
  | {
      readonly kind: 'overtaken'
      readonly position: Lsn
      readonly checkpointLsn: Lsn
      readonly reason: string
    }

/** The server's log no longer continues what was read from it. */
export class DivergedLogError extends PalimpsestError {
  override name = 'DivergedLogError'

  constructor(path: string, lsn: Lsn, why: string) {
    super(
      'invalid',
      `${path}: the log does not continue the one that was followed up to LSN ${lsn}: ${why}. The server lost redo in a crash of ` +
        'its machine, or its datadir was replaced; begin a new timeline for it',
      { lsn },
    )
  }
}

interface OpenLog {
  readonly file: FileHandle
  readonly inode: bigint
  readonly geometry: LogGeometry
  head: LogFileHead
}

async function readFully(
  file: FileHandle,
  buffer: Uint8Array,
  at: number,
  bytes: number,
  position: number,
): Promise<number> {
  let have = 0
  while (have < bytes) {
    const { bytesRead } = await file.read(buffer, at + have, bytes - have, position + have)
    if (bytesRead === 0) break
    have += bytesRead
  }
  return have
}

async function readHead(path: string, file: FileHandle): Promise<LogFileHead> {
  const buffer = Buffer.alloc(LOG_START_OFFSET)
  for (let attempt = 1; ; attempt++) {
    const have = await readFully(file, buffer, 0, LOG_START_OFFSET, 0)
    try {
      return parseLogFileHead(buffer.subarray(0, have))
    } catch (error) {
      if (!(error instanceof CorruptRedoError))
        throw new PalimpsestError('invalid', `${path}: ${(error as Error).message}`, { cause: error })
      if (attempt >= HEAD_ATTEMPTS)
        throw corruptError(`${path}: ${error.reason} (offset ${error.offset})`, undefined, error)
    }
    await new Promise(done => setTimeout(done, HEAD_RETRY_MS))
  }
}

async function openLog(path: string): Promise<OpenLog> {
  let file: FileHandle
  try {
    // A FIFO would not let go of whoever opens it.
    file = await openServerFile(undefined, path)
  } catch (error) {
    throw explainSystemError(path, error)
  }
  try {
    const head = await readHead(path, file)
    const info = await file.stat({ bigint: true })
    return { file, inode: info.ino, geometry: new LogGeometry(head.firstLsn, Number(info.size)), head }
  } catch (error) {
    await file.close()
    throw error
  }
}

/** The newest checkpoint in a log file. @throws PalimpsestError for a file that is no log, or of a format not read */
export async function readCheckpoint(path: string): Promise<LogCheckpoint> {
  const log = await openLog(path)
  await log.file.close()
  return log.head.checkpoint
}

/** From a log's header: "MariaDB 10.11.18" becomes "10.11.18-MariaDB". */
export async function serverVersion(path: string): Promise<string> {
  const log = await openLog(path)
  await log.file.close()
  const match = /(\d+\.\d+\.\d+)/.exec(log.head.creator)
  return match ? `${match[1]}-MariaDB` : ''
}

export interface RingTailOptions {
  /** Where to begin: the end of a mini-transaction. Default: the newest checkpoint. */
  readonly fromLsn?: Lsn
  /** The file is a dead copy: it is not looked at for replacement, and it may be cut after its last record. */
  readonly cold?: boolean
}

export class RingTail {
  readonly path: string
  readonly #cold: boolean
  readonly #scanner = new MtrScanner()
  #guard = new StaleGuard()
  /** A mini-transaction that may be remains, by its distance from the first LSN. */
  #suspect: { readonly offset: number; readonly crc: number; readonly since: number } | undefined
  #suspects = 0
  #log: OpenLog
  /** The file that now bears the name, while the old one is read to its end. */
  #next: OpenLog | undefined
  #position: Lsn
  #continuity: Uint8Array = new Uint8Array(0)
  #lookBytes = PEEK_BYTES
  #replacedCheckAt = 0
  #idleCheckAt = 0
  #mtrs = 0

  private constructor(path: string, log: OpenLog, position: Lsn, cold: boolean) {
    this.path = path
    this.#log = log
    this.#position = position
    this.#cold = cold
  }

  /**
   * @throws DivergedLogError if `fromLsn` is beyond what the log holds or not the end of a mini-transaction in it.
   * A position that the ring has overtaken is no error here: the first `step` says so.
   */
  static async open(path: string, options: RingTailOptions = {}): Promise<RingTail> {
    let log = await openLog(path)
    if (options.cold && log.geometry.fileBytes % 4096 !== 0) {
      // A copy that was cut after its last record. In its first lap, which is all that such a copy can be of use in,
      // nothing depends on where the ring ends.
      log = {
        ...log,
        geometry: new LogGeometry(log.head.firstLsn, Number.MAX_SAFE_INTEGER - log.head.firstLsn - 1),
      }
    }
    const position = options.fromLsn ?? log.head.checkpoint.checkpointLsn
    const tail = new RingTail(path, log, position, options.cold ?? false)
    try {
      if (options.fromLsn !== undefined) await tail.#verifyPosition()
      await tail.#resetGuard()
    } catch (error) {
      await tail.close()
      throw error
    }
    return tail
  }

  /** Begins to look for repetitions anew: in this log, from this position on. */
  async #resetGuard(): Promise<void> {
    this.#guard = new StaleGuard()
    this.#suspect = undefined
    if (this.#cold) return
    const { firstLsn, capacity } = this.#log.geometry
    const bytes = Math.min(PRELOAD_BYTES, this.#position - firstLsn, capacity)
    if (bytes <= 0) return
    const buffer = Buffer.allocUnsafeSlow(bytes)
    const have = await this.#readRing(buffer, 0, (this.#position - bytes) as Lsn, bytes)
    if (have === bytes) this.#guard.preload(buffer, this.#position - firstLsn)
  }

  async close(): Promise<void> {
    await this.#log.file.close()
    await this.#next?.file.close()
    this.#next = undefined
  }

  /** End of the last mini-transaction handed out. */
  get position(): Lsn {
    return this.#position
  }

  /** The newest checkpoint as of the last look at the file's head; `refreshCheckpoint` looks again. */
  get checkpointLsn(): Lsn {
    return this.#log.head.checkpoint.checkpointLsn
  }

  get capacity(): number {
    return this.#log.geometry.capacity
  }

  get creator(): string {
    return this.#log.head.creator
  }

  async refreshCheckpoint(): Promise<Lsn> {
    this.#log.head = await readHead(this.path, this.#log.file)
    return this.checkpointLsn
  }

  /** Follows the log from another LSN, after an overtaking: a checkpoint of the file that now bears the name. */
  async restartAt(lsn: Lsn): Promise<void> {
    if (this.#next) {
      await this.#log.file.close()
      this.#log = this.#next
      this.#next = undefined
    }
    this.#position = lsn
    this.#continuity = new Uint8Array(0)
    this.#lookBytes = CHUNK_BYTES_MAX
    await this.#resetGuard()
  }

  /** Reads `bytes` of the log from `lsn` on, the ring laid out in a line. Returns how many there were. */
  async #readRing(buffer: Uint8Array, at: number, lsn: Lsn, bytes: number): Promise<number> {
    const { file, geometry } = this.#log
    let have = 0
    const want = Math.min(bytes, geometry.capacity)
    while (have < want) {
      const from = (lsn + have) as Lsn
      const run = Math.min(want - have, geometry.bytesToWrap(from))
      const got = await readFully(file, buffer, at + have, run, geometry.fileOffset(from))
      have += got
      if (got < run) break
    }
    return have
  }

  /**
   * One look at the log. Never waits for the server. `idle` says that no further mini-transaction was seen; whether
   * that is the end of the log, and not a place that the ring has overtaken, is looked into every IDLE_CHECK_MS, and
   * right now if `thorough`.
   */
  async step(thorough = false): Promise<TailStep> {
    if (this.#position < this.#log.geometry.firstLsn) return await this.#lost('the log file begins later')
    const before = Math.min(this.#continuity.length, this.#position - this.#log.geometry.firstLsn)
    // Whether a suspect is to be believed is seen from what comes after its block.
    let look = this.#suspect ? Math.max(this.#lookBytes, SUSPECT_LOOK_BYTES) : this.#lookBytes
    for (;;) {
      const buffer = Buffer.allocUnsafe(before + look)
      const have = await this.#readRing(buffer, 0, (this.#position - before) as Lsn, before + look)
      if (
        before > 0 &&
        Buffer.compare(
          buffer.subarray(0, before),
          this.#continuity.subarray(this.#continuity.length - before),
        ) !== 0
      )
        return await this.#broken()
      const { at, fileMtrs, stop } = this.#scan(buffer, before, have)
      const consumedBytes = at - before
      if (consumedBytes === 0) {
        if (stop === ScanResult.NEED_MORE && have === before + look && look < MTR_SCAN_BYTES_MAX) {
          look =
            look < SUSPECT_LOOK_BYTES
              ? SUSPECT_LOOK_BYTES
              : look < CHUNK_BYTES_MAX
                ? CHUNK_BYTES_MAX
                : MTR_SCAN_BYTES_MAX
          continue
        }
        this.#lookBytes = PEEK_BYTES
        return await this.#nothing(stop, thorough)
      }
      // The bytes were there; were they of this lap? The checkpoint read after them tells (property 2 above).
      if (!this.#cold && (await this.refreshCheckpoint()) > this.#position + this.capacity)
        return await this.#lost('the ring came round twice')
      const beginLsn = this.#position
      const part = buffer.subarray(before, before + consumedBytes)
      // A small piece does not keep a large buffer alive.
      const bytes = consumedBytes * 2 >= have ? part : Buffer.from(part)
      this.#position = (beginLsn + consumedBytes) as Lsn
      this.#continuity = Buffer.concat([this.#continuity, bytes.subarray(-CONTINUITY_BYTES)]).subarray(
        -CONTINUITY_BYTES,
      )
      // A ring is always full of something, so only a chain that the look cut off tells that there is more.
      this.#lookBytes =
        stop === ScanResult.NEED_MORE && have === before + look
          ? Math.min(CHUNK_BYTES_MAX, Math.max(look * 4, PEEK_BYTES))
          : Math.min(CHUNK_BYTES_MAX, Math.max(PEEK_BYTES, consumedBytes * 2))
      await this.#noticeReplacement(false)
      const atEnd =
        stop !== ScanResult.NEED_MORE &&
        this.#suspect?.offset !== this.#position - this.#log.geometry.firstLsn &&
        this.checkpointLsn <= this.#position
      return { kind: 'chunk', beginLsn, endLsn: this.#position, bytes, fileMtrs, atEnd }
    }
  }

  /** The mini-transactions in `buffer[start, end)`, the first of which begins at the position. */
  #scan(
    buffer: Uint8Array,
    start: number,
    end: number,
  ): { readonly at: number; readonly fileMtrs: readonly number[]; readonly stop: ScanResult } {
    const { geometry } = this.#log
    const scanner = this.#scanner
    const position = this.#position
    const base = position - geometry.firstLsn
    const fileMtrs: number[] = []
    /** Start and end in the buffer, and checksum, of those that the last block may hold. */
    const recent: number[] = []
    let at = start
    let stop: ScanResult = ScanResult.NEED_MORE
    while (at < end) {
      stop = scanner.scan(buffer, at, end, (position + (at - start)) as Lsn, geometry)
      if (stop !== ScanResult.COMPLETE) break
      if (!this.#cold) recent.push(at, scanner.mtrEnd, read4(buffer, scanner.mtrEnd - 4))
      // Records about files come before those about pages.
      if (buffer[at]! >= FILE_RECORD) fileMtrs.push(at - start, scanner.mtrEnd - start)
      at = scanner.mtrEnd
      this.#mtrs++
    }
    // The look ended just where a mini-transaction does: that tells nothing of what comes after it.
    if (stop === ScanResult.COMPLETE) stop = ScanResult.NEED_MORE
    // The block in which the chain ends is the only one whose end may be remains of the log buffer.
    const lastBlock = Math.floor((base + (at - start) - 1) / BLOCK_BYTES_MOST) * BLOCK_BYTES_MOST
    for (let i = 0; i < recent.length; i += 3) {
      const mtr = recent[i]!
      const offset = base + (mtr - start)
      const crc = recent[i + 2]!
      if (offset >= lastBlock && !this.#isCredible(offset, crc, buffer, mtr, recent[i + 1]!)) {
        while (fileMtrs.length > 0 && fileMtrs.at(-2)! >= mtr - start) fileMtrs.length -= 2
        this.#mtrs -= (recent.length - i) / 3
        return { at: mtr, fileMtrs, stop: ScanResult.SEQUENCE_BIT }
      }
      this.#guard.add(offset, crc)
    }
    return { at, fileMtrs, stop }
  }

  #isCredible(offset: number, crc: number, buffer: Uint8Array, start: number, end: number): boolean {
    if (!this.#guard.isRepeated(offset, crc, buffer, start, end)) return true
    const now = performance.now()
    const suspect = this.#suspect
    if (suspect?.offset === offset && suspect.crc === crc) return now - suspect.since >= SUSPECT_MS
    this.#suspect = { offset, crc, since: now }
    this.#suspects++
    return false
  }

  /** Mini-transactions that were not believed at first sight. */
  get suspects(): number {
    return this.#suspects
  }

  /** Mini-transactions handed out so far. */
  get mtrs(): number {
    return this.#mtrs
  }

  /** No whole mini-transaction stands at the position: the end of the log, or it was overwritten. */
  async #nothing(stop: ScanResult, thorough: boolean): Promise<TailStep> {
    if (this.#cold) return { kind: 'idle' }
    const time = performance.now()
    if (!thorough && time < this.#idleCheckAt) return { kind: 'idle' }
    this.#idleCheckAt = time + IDLE_CHECK_MS
    if (this.#suspect?.offset === this.#position - this.#log.geometry.firstLsn) {
      // Below the checkpoint everything was written for good.
      if ((await this.refreshCheckpoint()) <= this.#position) return { kind: 'wait' }
      this.#suspect = { ...this.#suspect, since: Number.NEGATIVE_INFINITY }
      return { kind: 'wait' }
    }
    await this.#noticeReplacement(true)
    if ((await this.refreshCheckpoint()) > this.#position) {
      // Property 3. The read may have been older than the checkpoint: look once more.
      if (await this.#hasMtr()) return { kind: 'wait' }
      return await this.#lost(`there is ${describeScanResult(stop)} below the checkpoint`)
    }
    if (!this.#next) return { kind: 'idle' }
    return (await this.#hasMtr()) ? { kind: 'wait' } : await this.#switchFile()
  }

  async #hasMtr(): Promise<boolean> {
    const buffer = Buffer.allocUnsafe(MTR_SCAN_BYTES_MAX)
    const have = await this.#readRing(buffer, 0, this.#position, buffer.length)
    return this.#scanner.scan(buffer, 0, have, this.#position, this.#log.geometry) === ScanResult.COMPLETE
  }

  /**
   * The bytes before the position are not those that were handed out. Usually the checkpoint tells that the ring came
   * round. But a server whose log is too small for its mini-transactions writes beyond checkpoint + capacity rather than
   * stop (it logs "Crash recovery was broken"); then not even its own checkpoint can be read, and soon there is a new
   * one. If the log from the checkpoint on is sound and does not lead to our position, it is another log.
   */
  async #broken(): Promise<TailStep> {
    const checkpointLsn = await this.refreshCheckpoint()
    if (checkpointLsn > this.#position - CONTINUITY_BYTES)
      return await this.#lost('the redo before it was overwritten')
    const reached = await this.#walk(checkpointLsn, this.#position)
    if (reached === this.#position) return { kind: 'wait' }
    if (reached === checkpointLsn || (await this.refreshCheckpoint()) > checkpointLsn) return { kind: 'wait' }
    throw new DivergedLogError(this.path, this.#position, `its redo ends at LSN ${reached}`)
  }

  async #lost(reason: string): Promise<TailStep> {
    await this.#noticeReplacement(true)
    const log = this.#next ?? this.#log
    log.head = await readHead(this.path, log.file)
    const checkpointLsn = log.head.checkpoint.checkpointLsn
    if (checkpointLsn <= this.#position && log === this.#log)
      throw new DivergedLogError(
        this.path,
        this.#position,
        `${reason}, and its checkpoint is only at LSN ${checkpointLsn}`,
      )
    return { kind: 'overtaken', position: this.#position, checkpointLsn, reason }
  }

  async #noticeReplacement(now: boolean): Promise<void> {
    if (this.#cold) return
    const time = performance.now()
    if (!now && time < this.#replacedCheckAt) return
    this.#replacedCheckAt = time + REPLACED_CHECK_MS
    let inode: bigint
    try {
      inode = (await stat(this.path, { bigint: true })).ino
    } catch (error) {
      // No file: the server is being set up anew, or stopped for good. Keep to what is open until there is one.
      if (isMissing(error)) return
      throw explainSystemError(this.path, error)
    }
    if (inode === (this.#next ?? this.#log).inode) return
    const next = await openLog(this.path)
    if (next.inode === (this.#next ?? this.#log).inode) {
      await next.file.close()
      return
    }
    await this.#next?.file.close()
    this.#next = next
  }

  /** The old file was read to its end, and nothing was written to it since the new one took its name. */
  async #switchFile(): Promise<TailStep> {
    const old = this.#log
    const next = this.#next!
    next.head = await readHead(this.path, next.file)
    if (this.#position < next.geometry.firstLsn) {
      this.#log = next
      this.#next = undefined
      await old.file.close()
      return {
        kind: 'overtaken',
        position: this.#position,
        checkpointLsn: next.head.checkpoint.checkpointLsn,
        reason: 'the log was replaced by one that begins later',
      }
    }
    this.#log = next
    this.#next = undefined
    await old.file.close()
    await this.#verifyPosition()
    await this.#compareChecksum()
    // The same redo has other sequence bits in a ring of another size.
    this.#continuity = new Uint8Array(0)
    await this.#resetGuard()
    return { kind: 'wait' }
  }

  /** A new file that reaches back before the position must have the same mini-transaction there. */
  async #compareChecksum(): Promise<void> {
    const { geometry } = this.#log
    const known = this.#continuity.subarray(-CHECKSUM_BYTES)
    if (known.length < CHECKSUM_BYTES || this.#position - CHECKSUM_BYTES < geometry.firstLsn) return
    const buffer = Buffer.alloc(CHECKSUM_BYTES)
    await this.#readRing(buffer, 0, (this.#position - CHECKSUM_BYTES) as Lsn, CHECKSUM_BYTES)
    if (Buffer.compare(buffer, known) === 0) return
    if ((await this.refreshCheckpoint()) > this.#position) return
    throw new DivergedLogError(this.path, this.#position, 'the new log file has other redo there')
  }

  /** Goes from one mini-transaction to the next. Returns where that ended: at `to`, if both are on the way. */
  async #walk(from: Lsn, to: Lsn): Promise<Lsn> {
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES_MAX + MTR_SCAN_BYTES_MAX)
    let at = from
    while (at < to) {
      const have = await this.#readRing(buffer, 0, at, Math.min(buffer.length, to - at))
      const { consumedBytes } = this.#scanner.scanRange(buffer, 0, have, at, this.#log.geometry)
      if (consumedBytes === 0) break
      at = (at + consumedBytes) as Lsn
    }
    return at
  }

  /**
   * Makes sure that the position is where a mini-transaction ends in this log, by walking from the checkpoint to it or
   * from it to the checkpoint. A log that was overwritten in between says nothing; that is for `step` to find.
   */
  async #verifyPosition(): Promise<void> {
    const { geometry, head } = this.#log
    const { checkpointLsn } = head.checkpoint
    const position = this.#position
    if (position < geometry.firstLsn || position === checkpointLsn) return
    const [from, to] = checkpointLsn < position ? [checkpointLsn, position] : [position, checkpointLsn]
    if (to - from > geometry.capacity) {
      if (checkpointLsn < position)
        throw new DivergedLogError(
          this.path,
          position,
          `the log's checkpoint is at LSN ${checkpointLsn}, far behind`,
        )
      return
    }
    const at = await this.#walk(from, to)
    if (at === to) return
    const current = await readHead(this.path, this.#log.file)
    if (current.checkpoint.checkpointLsn > checkpointLsn) {
      // The server has moved on while we walked.
      this.#log.head = current
      return await this.#verifyPosition()
    }
    // The ring may have overtaken the position before or while we walked from it; `step` will report that.
    if (from === position && !(await this.#hasMtr())) return
    throw new DivergedLogError(
      this.path,
      position,
      at < to && checkpointLsn < position
        ? `it ends at LSN ${at}`
        : `no mini-transaction ends there; the next one found ends at LSN ${at}`,
    )
  }
}
