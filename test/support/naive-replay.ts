/**
 * The dumb way to any page at any LSN, against which the clever ones are tested: all tablespaces in memory, every
 * mini-transaction applied in order, nothing indexed, nothing cached, no code shared with ingestion but the record
 * decoder and the applier.
 *
 *     const replay = NaiveReplay.load(datadir)             // files as of a checkpoint
 *     replay.useRedo(readFileSync('ib_logfile0'))
 *     replay.advanceTo(lsn)                                // forward only; without an LSN: to the end of the log
 *     replay.page(space, pageNo)                           // as in memory at replay.lsn
 *     replay.writtenPage(space, pageNo)                    // as InnoDB would write it: checksum stamped
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { PageApplier } from '../../parser/apply-page.ts'
import { decompressPage } from '../../parser/page-compression.ts'
import {
  FSP_SPACE_FLAGS,
  FSP_SPACE_ID,
  isZeroPage,
  read4,
  stampChecksum,
  verifyPage,
} from '../../parser/page-format.ts'
import {
  decodeVarint,
  ExtendedSubtype,
  RecordCursor,
  RecordType,
  varintBytes,
} from '../../parser/record-decoder.ts'
import { parseSpaceFlags, readSpaceFormat, type SpaceFormat } from '../../parser/space-flags.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { formatPageId, type Lsn, toLsn } from '../../protocol/ids.ts'

/** Where the ring of an ib_logfile0 begins. */
const LOG_START_OFFSET = 0x3000

export interface NaiveSpace {
  readonly id: number
  /** Path relative to the datadir, as the server's log has it ("./zoo/t.ibd" without the "./"). */
  name: string
  /** Undefined until the flags in page 0 were seen. */
  format: SpaceFormat | undefined
  readonly pages: Map<number, Uint8Array>
}

/** Told about every mini-transaction after it was applied: its range, and the pages it has records for. */
export type MtrListener = (start: Lsn, end: Lsn, pages: ReadonlySet<string>) => void

export class NaiveReplay {
  readonly spaces = new Map<number, NaiveSpace>()
  readonly applier = new PageApplier()
  /** Pages that had at least one record, as "space:page". */
  readonly touched = new Set<string>()
  /** End LSN of the last mini-transaction applied; the checkpoint before the first. */
  lsn: Lsn = toLsn(0)
  mtrs = 0
  /** TRIM_PAGES records seen. */
  trims = 0
  records = 0
  onMtr: MtrListener | undefined

  readonly #cursor = new RecordCursor()
  #redo: Uint8Array = new Uint8Array(0)
  /** LSN at which the log file begins. */
  firstLsn = 0
  #capacity = 0

  /** Loads every tablespace file below `datadir`, and the checkpoint of its ib_logfile0 if there is one. */
  static load(datadir: string): NaiveReplay {
    const replay = new NaiveReplay()
    for (const path of tablespaceFiles(datadir)) replay.addFile(relative(datadir, path), readFileSync(path))
    try {
      replay.useRedo(readFileSync(join(datadir, 'ib_logfile0')))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
    return replay
  }

  /** Adds a tablespace from its file's content. Pages are verified. */
  addFile(name: string, content: Uint8Array): NaiveSpace {
    const format = readSpaceFormat(content)
    const size = format.physicalSize
    const space: NaiveSpace = { id: read4(content, FSP_SPACE_ID), name, format, pages: new Map() }
    for (let pageNo = 0; (pageNo + 1) * size <= content.length; pageNo++) {
      const page = content.subarray(pageNo * size, (pageNo + 1) * size)
      if (isZeroPage(page)) continue
      const check = verifyPage(page, format)
      if (!check.ok) throw new Error(`${name}: page ${pageNo}: ${check.reason}`)
      const plain = decompressPage(page, format, name)
      space.pages.set(pageNo, plain === page ? Uint8Array.from(page) : plain)
    }
    this.spaces.set(space.id, space)
    return space
  }

  /**
   * Sets the log to read: an ib_logfile0, or one that was cut after its last record (which never wrapped).
   * Replay goes on where it stood; if it has not begun, at the newer of the file's two checkpoints.
   */
  useRedo(file: Uint8Array): void {
    const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
    if (view.getUint32(0) !== 0x50687973) throw new Error('not an ib_logfile0 of MariaDB 10.8 or newer')
    this.#redo = file
    this.firstLsn = toLsn(view.getBigUint64(8))
    this.#capacity = file.length - LOG_START_OFFSET
    if (this.lsn === 0)
      for (const block of [0x1000, 0x2000]) {
        const valid =
          block + 64 <= file.length && crc32c(file, block, block + 60) === view.getUint32(block + 60)
        if (valid) this.lsn = toLsn(Math.max(this.lsn, toLsn(view.getBigUint64(block))))
      }
  }

  /** Applies whole mini-transactions up to `target`. Returns the LSN reached: below `target` if the log ends before. */
  advanceTo(target: number = Number.MAX_SAFE_INTEGER): Lsn {
    while (this.lsn < target) {
      const mtr = this.#readMtr(this.lsn)
      if (!mtr) break
      const end = toLsn(this.lsn + mtr.length)
      if (end > target) break
      const start = this.lsn
      this.#applyMtr(mtr.subarray(0, mtr.length - 5), end)
      this.lsn = end
      this.mtrs++
      this.onMtr?.(start, end, this.#mtrPages)
    }
    return this.lsn
  }

  page(spaceId: number, pageNo: number): Uint8Array | undefined {
    return this.spaces.get(spaceId)?.pages.get(pageNo)
  }

  /** A copy with its checksum; all zero if there is no such page. Not page_compressed. */
  writtenPage(spaceId: number, pageNo: number): Uint8Array {
    const space = this.spaces.get(spaceId)
    if (!space?.format) throw new Error(`no tablespace ${spaceId} at LSN ${this.lsn}`)
    const page = space.pages.get(pageNo)
    if (!page) return new Uint8Array(space.format.physicalSize)
    const copy = Uint8Array.from(page)
    stampChecksum(copy, space.format)
    return copy
  }

  spaceByName(name: string): NaiveSpace | undefined {
    for (const space of this.spaces.values()) if (space.name === name) return space
    return undefined
  }

  readonly #mtrPages = new Set<string>()

  /** The bytes of the mini-transaction at `lsn`, or undefined where the log ends. */
  #readMtr(lsn: number): Uint8Array | undefined {
    const at = (n: number): number => this.#redo[LOG_START_OFFSET + (n % this.#capacity)] ?? 0
    const begin = lsn - this.firstLsn
    let pos = begin
    for (;;) {
      const first = at(pos)
      if (first <= 1) break
      let length = first & 15
      if (length === 0) {
        const head = Uint8Array.of(at(pos + 1), at(pos + 2), at(pos + 3), at(pos + 4), at(pos + 5))
        if (varintBytes(head[0]!) > 3) return undefined
        length = decodeVarint(head, 0) + 15
      }
      pos += 1 + length
      if (pos - begin > 1 << 20) return undefined
    }
    // The terminator carries the ring's sequence bit: what an earlier round left behind has the wrong one.
    const expected = Math.floor(pos / this.#capacity) % 2 === 0 ? 1 : 0
    if (pos === begin || at(pos) !== expected) return undefined
    const mtr = new Uint8Array(pos - begin + 5)
    for (let i = 0; i < mtr.length; i++) mtr[i] = at(begin + i)
    return read4(mtr, mtr.length - 4) === crc32c(mtr, 0, mtr.length - 5) ? mtr : undefined
  }

  #applyMtr(records: Uint8Array, end: Lsn): void {
    const cursor = this.#cursor
    this.#mtrPages.clear()
    cursor.reset(records, 0, records.length)
    let entryStart = -1
    let entryEnd = 0
    let space = 0
    let pageNo = 0
    /** Every entry of this mini-transaction per page, so that the page's LSN is looked at once. */
    const entries = new Map<string, { space: number; pageNo: number; ranges: [number, number][] }>()
    const close = (): void => {
      if (entryStart < 0) return
      const key = formatPageId({ space, page: pageNo })
      const entry = entries.get(key) ?? { space, pageNo, ranges: [] }
      entry.ranges.push([entryStart, entryEnd])
      entries.set(key, entry)
      entryStart = -1
    }
    while (cursor.next()) {
      this.records++
      if (!cursor.samePage) close()
      if (cursor.type & 0x80 && !cursor.samePage) {
        this.#fileRecord(records)
        continue
      }
      if (cursor.type === RecordType.EXTENDED && cursor.subtype === ExtendedSubtype.TRIM_PAGES) {
        // The undo tablespace starts over: nothing that was in it counts any more.
        this.spaces.get(cursor.space)?.pages.clear()
        this.trims++
        continue
      }
      if (cursor.type === RecordType.WRITE && cursor.page === 0) this.#noteFlags(records)
      if (!cursor.samePage) {
        entryStart = cursor.recordStart
        space = cursor.space
        pageNo = cursor.page
      }
      entryEnd = cursor.recordEnd
    }
    close()
    for (const [key, entry] of entries) {
      this.touched.add(key)
      this.#mtrPages.add(key)
      const target = this.spaces.get(entry.space)
      if (!target?.format)
        throw new Error(`records at LSN ${end} for tablespace ${entry.space}, which is not known`)
      let page = target.pages.get(entry.pageNo)
      if (!page) {
        page = new Uint8Array(target.format.physicalSize)
        target.pages.set(entry.pageNo, page)
      }
      this.applier.begin(page, target.format, entry.space, entry.pageNo)
      for (const [from, to] of entry.ranges) this.applier.apply(records, from, to, end)
      this.applier.end()
    }
  }

  /** The flags of a new tablespace must be known before its first page can be made. */
  #noteFlags(buf: Uint8Array): void {
    const cursor = this.#cursor
    const from = cursor.pageOffset
    if (from > FSP_SPACE_FLAGS || from + cursor.pageLength < FSP_SPACE_FLAGS + 4) return
    const format = parseSpaceFlags(read4(buf, cursor.dataStart + FSP_SPACE_FLAGS - from))
    this.#space(cursor.space).format = format
  }

  #space(id: number): NaiveSpace {
    let space = this.spaces.get(id)
    if (!space) {
      space = { id, name: '', format: undefined, pages: new Map() }
      this.spaces.set(id, space)
    }
    return space
  }

  #fileRecord(buf: Uint8Array): void {
    const cursor = this.#cursor
    const text = Buffer.from(buf.subarray(cursor.payloadStart, cursor.recordEnd)).toString()
    const names = text.split('\0').map(name => (name.startsWith('./') ? name.slice(2) : name))
    switch (cursor.type) {
      case RecordType.FILE_CREATE:
      case RecordType.FILE_MODIFY:
        this.#space(cursor.space).name = names[0]!
        return
      case RecordType.FILE_RENAME:
        this.#space(cursor.space).name = names[1]!
        return
      case RecordType.FILE_DELETE:
        this.spaces.delete(cursor.space)
        return
      default:
      // FILE_CHECKPOINT and padding change nothing.
    }
  }
}

/** ibdata*, undo00N and *.ibd below a datadir; the temporary tablespace is not among them. */
export function tablespaceFiles(datadir: string): string[] {
  return readdirSync(datadir, { recursive: true, withFileTypes: true })
    .filter(e => e.isFile() && (/\.ibd$/.test(e.name) || /^(ibdata|undo)[0-9]+$/.test(e.name)))
    .map(e => join(e.parentPath, e.name))
    .sort()
}
