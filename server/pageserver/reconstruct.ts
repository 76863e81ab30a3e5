/**
 * Makes a page as it was at an LSN, out of images, layers and memtables. Runs in a worker.
 *
 *     1. floor = the newest image at or before the LSN, or the truncation of the tablespace that voided everything older
 *     2. start = the newest INIT_PAGE in (floor, LSN], which makes everything older irrelevant; else the floor's image,
 *        or zeros
 *     3. apply all entries from there up to the LSN, oldest first
 *     4. stamp the checksum, sum the page
 *
 * The walk is over *sources*, newest first: the runs of each memtable, then delta layers. Nothing is collected per
 * entry, so a page with a million entries takes time but no memory; what is remembered is one number per run.
 *
 * A page that was freed keeps the bytes it had: that is how it stands in InnoDB's buffer pool, and whoever looks for
 * what was deleted wants just these.
 *
 * What leads to a FREE_PAGE need not fit, though. InnoDB does not write a page out that is free again, and its checkpoint goes
 * on without it; an import that begins at such a checkpoint finds blanks or an older version in the file, and in the redo only
 * the end of the page's life. Recovery drops what comes before a FREE_PAGE (log0recv.cc: page_recv_t::will_not_read), so nobody
 * may miss it here either: the page is blank then.
 */

import { ApplyResult, PageApplier } from '../../parser/apply-page.ts'
import { EntryFlag } from '../../parser/chunk-index.ts'
import { CorruptPageError } from '../../parser/corrupt-page-error.ts'
import { pageLsn, stampChecksum } from '../../parser/page-format.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { formatPageId, LSN_ZERO, type Lsn } from '../../protocol/ids.ts'
import { corruptError, PalimpsestError } from '../shared/errors.ts'
import { type ArenaMemory, NO_WORD } from './arena.ts'
import { type LayerFiles, type LayerSource, MISSING_LAYERS_MAX, type MissingLayers } from './layer-files.ts'
import { RunCursor } from './run-index.ts'

/** One page to make. Everything that can change was looked up by the main thread when it made the request. */
export interface PageRequest {
  readonly space: number
  readonly page: number
  /** FSP_SPACE_FLAGS of the tablespace at the LSN. */
  readonly flags: number
  /** Its physical size, which follows from the flags. */
  readonly bytes: number
  /** What the redo says of the page at or before this LSN is void (the tablespace was truncated); 0 without. */
  readonly trimLsn: Lsn
  /** Newest run in each memtable that has any, newest memtable first. */
  readonly runs: readonly number[]
  /** Layers that may hold the page, newest first, as places in the batch's list of layers. */
  readonly layers: readonly number[]
}

/** A delta layer that has entries of the page, or the image that is its base. */
interface Found {
  readonly layer: LayerSource
  readonly handle: number
}

export interface MadePage {
  /** LSN of the newest change that is in it: it has been this page since then. */
  from: Lsn
  pageLsn: Lsn
  crc: number
  freed: boolean
  /** Entries applied and their bytes, for statistics and for deciding where an image would pay. */
  entries: number
  entryBytes: number
}

export class Reconstructor {
  readonly #arenaBytes: Uint8Array
  readonly #files: LayerFiles
  readonly #applier = new PageApplier()
  readonly #cursor: RunCursor
  /** The page under construction: private memory, which is faster to copy within than shared memory. */
  readonly #buffer = new Uint8Array(65536)

  // State of the page under construction.
  /** Blanks the page and begins anew. */
  #blank: () => void = () => {}
  /** A record did not fit: an error, unless the page was freed later. */
  #misfit: CorruptPageError | undefined
  #from: Lsn = LSN_ZERO
  #freed = false
  #awaitInit = false
  #entries = 0
  #entryBytes = 0

  constructor(arenas: ArenaMemory, files: LayerFiles) {
    this.#arenaBytes = arenas.region.bytes
    this.#cursor = new RunCursor(arenas)
    this.#files = files
  }

  /**
   * @param target where the page goes: exactly its physical size
   * @returns the page, or the layers to be fetched before it can be made
   * @throws PalimpsestError of kind corrupt, naming page and LSN, when redo or layer are damaged or do not fit the page
   */
  make(
    request: PageRequest,
    layers: readonly LayerSource[],
    lsn: Lsn,
    target: Uint8Array,
  ): MadePage | MissingLayers {
    const format = parseSpaceFlags(request.flags)
    const page = this.#buffer.subarray(0, format.physicalSize)
    const { space, page: pageNo, runs } = request
    this.#from = request.trimLsn
    this.#freed = false
    this.#misfit = undefined
    this.#entries = 0
    this.#entryBytes = 0
    try {
      let floor = request.trimLsn
      let image: Found | undefined
      const deltas: Found[] = []
      const missing: number[] = []
      // What ended before the newest INIT_PAGE that is known of is void, unless an image lies above that.
      let known = request.layers.length === 0 ? LSN_ZERO : this.#newestInit(runs, deltas, floor, lsn)
      for (const at of request.layers) {
        const layer = layers[at]!
        if (
          layer.lsnEnd <= floor ||
          layer.lsnEnd < known ||
          (layer.kind === 'image' ? layer.lsnEnd > lsn : layer.lsnStart >= lsn)
        )
          continue
        if (layer.path === undefined) {
          missing.push(at)
          if (missing.length === MISSING_LAYERS_MAX) break
          continue
        }
        const handle = this.#files.find(layer, space, pageNo)
        if (handle < 0) continue
        if (layer.kind === 'delta') {
          deltas.push({ layer, handle })
          const init = this.#files.lastInit(layer, handle)
          // A branch's ancestor may have initialised it later.
          if (init <= lsn && init <= layer.lsnEnd && init > known) known = init
        } else {
          image = { layer, handle }
          floor = layer.lsnEnd
        }
      }
      if (missing.length > 0) return { missing }
      const init = this.#newestInit(runs, deltas, floor, lsn)
      if (image !== undefined && init === LSN_ZERO) {
        this.#files.readImage(image.layer, image.handle, page)
        this.#from = floor
      } else {
        page.fill(0)
      }
      const begin = (): void => this.#applier.begin(page, format, space, pageNo)
      this.#blank = () => {
        page.fill(0)
        begin()
      }
      begin()
      // The INIT_PAGE entry itself is to be applied, and nothing before it, not even of the same mini-transaction.
      this.#awaitInit = init !== LSN_ZERO
      this.#applyAll(runs, deltas, init === LSN_ZERO ? floor : ((init - 1) as Lsn), lsn)
      if (this.#misfit !== undefined) throw this.#misfit
      this.#applier.end()
      stampChecksum(page, format)
      target.set(page)
      return {
        // A page without any history was made for this LSN; nothing tells since when it is so.
        from: this.#from === LSN_ZERO ? lsn : this.#from,
        pageLsn: pageLsn(page),
        crc: crc32c(page, 0, page.length),
        freed: this.#freed,
        entries: this.#entries,
        entryBytes: this.#entryBytes,
      }
    } catch (error) {
      if (error instanceof PalimpsestError && error.kind !== 'corrupt') throw error
      const at = (error as { lsn?: Lsn }).lsn
      const text = error instanceof Error ? error.message : String(error)
      throw corruptError(`page ${formatPageId(request)} as of LSN ${lsn}: ${text}`, at ?? lsn, error)
    }
  }

  /** LSN of the newest INIT_PAGE of the page in (floor, lsn], or 0. */
  #newestInit(runs: readonly number[], deltas: readonly Found[], floor: Lsn, lsn: Lsn): Lsn {
    const cursor = this.#cursor
    for (const newest of runs)
      for (let run = newest; run !== NO_WORD; run = cursor.previous(run)) {
        cursor.open(run)
        if (cursor.lastLsn <= floor) return LSN_ZERO
        if (cursor.firstLsn > lsn) continue
        const at = cursor.newestInit(lsn)
        if (at !== LSN_ZERO) return at > floor ? at : LSN_ZERO
      }
    for (const { layer, handle } of deltas) {
      if (layer.lsnEnd <= floor) continue
      const at = this.#files.newestInit(layer, handle, floor, lsn)
      if (at !== LSN_ZERO) return at
    }
    return LSN_ZERO
  }

  /** Applies everything in (after, lsn], oldest first. */
  #applyAll(runs: readonly number[], deltas: readonly Found[], after: Lsn, lsn: Lsn): void {
    for (let i = deltas.length - 1; i >= 0; i--) {
      const { layer, handle } = deltas[i]!
      if (layer.lsnEnd > after) this.#files.forEachEntry(layer, handle, after, lsn, this.#apply, true)
    }
    const cursor = this.#cursor
    for (let i = runs.length - 1; i >= 0; i--) {
      const chain: number[] = []
      for (let run = runs[i]!; run !== NO_WORD; run = cursor.previous(run)) {
        cursor.open(run)
        if (cursor.lastLsn <= after) break
        if (cursor.firstLsn <= lsn) chain.push(run)
      }
      for (let c = chain.length - 1; c >= 0; c--) {
        cursor.open(chain[c]!)
        while (cursor.next()) {
          if (cursor.lsn <= after) continue
          if (cursor.lsn > lsn) break
          this.#apply(this.#arenaBytes, cursor.start, cursor.end, cursor.lsn, cursor.flags)
        }
      }
    }
  }

  readonly #apply = (buf: Uint8Array, start: number, end: number, at: Lsn, flags: number): void => {
    if (this.#awaitInit) {
      if ((flags & EntryFlag.INIT_PAGE) === 0) return
      this.#awaitInit = false
    }
    if (this.#misfit !== undefined) {
      if ((flags & EntryFlag.FREE_PAGE) === 0) return
      this.#misfit = undefined
      this.#blank()
    }
    let result: ApplyResult
    try {
      result = this.#applier.apply(buf, start, end, at)
    } catch (error) {
      if (!(error instanceof CorruptPageError)) throw error
      this.#misfit = error
      return
    }
    this.#entries++
    this.#entryBytes += end - start
    if (at > this.#from) this.#from = at
    if (result === ApplyResult.FREED) this.#freed = true
    else if (result === ApplyResult.APPLIED) this.#freed = false
  }
}
