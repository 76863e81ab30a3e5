/**
 * Notices tablespaces whose content is not in the redo log.
 *
 * ALTER TABLE … IMPORT TABLESPACE writes a foreign file into place: no record tells its pages. What the log does have is
 * FILE_MODIFY for a tablespace that it said was deleted (DISCARD TABLESPACE), or that it never said was created. The
 * file's content at that moment must then be copied.
 *
 * A new tablespace has FILE_MODIFY, too, and before its FILE_CREATE: InnoDB names a tablespace in a mini-transaction of
 * its own that it writes just before the first one that changes it (mtr_t::commit, fil_names_dirty_and_write), and here
 * that is the one with FILE_CREATE. Nothing comes between the two, so the next mini-transaction decides.
 */
import { MTR_TRAILER_BYTES } from '../../parser/mtr-scanner.ts'
import { RecordCursor } from '../../parser/record-decoder.ts'
import { collectSpaceEvents, type FileEvent, type SpaceEvent } from '../../parser/space-events.ts'
import type { Lsn } from '../../protocol/ids.ts'

export interface UnknownSpaces {
  readonly spaces: readonly { readonly space: number; readonly name: string; readonly external: boolean }[]
  /** Offset in the chunk after the mini-transaction that names them: no record about their pages comes before it. */
  readonly at: number
}

export class SpaceTracker {
  readonly #known = new Set<number>()
  /** As far as the log named them. */
  readonly #names = new Map<number, string>()
  /** Where the log created them, and last renamed them. */
  readonly #created = new Map<number, Lsn>()
  readonly #renamed = new Map<number, Lsn>()
  /** What the log deleted while datadirs are scanned. */
  #deleted: Set<number> | undefined
  readonly #cursor = new RecordCursor()
  /** Named by the last mini-transaction, which ended at `#suspectLsn`, and not created yet. */
  #suspects: FileEvent[] = []
  #suspectLsn = -1

  /** These tablespaces are in the timeline, unless they were deleted since `beginScans`. */
  know(spaces: Iterable<number>): void {
    for (const space of spaces) if (!this.#deleted?.has(space)) this.#known.add(space)
  }

  /** A scan takes a moment, and what it saw may be deleted by its end: from here on, `know` does not bring that back. */
  beginScans(): void {
    this.#deleted = new Set()
  }

  endScans(): void {
    this.#deleted = undefined
  }

  /** The file of a tablespace, if the log named it. */
  nameOf(space: number): string | undefined {
    return this.#names.get(space)
  }

  /** The tablespaces that exist, as far as was told. */
  all(): number[] {
    return [...this.#known]
  }

  knows(space: number): boolean {
    return this.#known.has(space)
  }

  /** The redo beyond `lsn` creates it, so that all of its pages are in there. */
  wasCreatedAfter(space: number, lsn: Lsn): boolean {
    return (this.#created.get(space) ?? 0) > lsn
  }

  /** Tablespaces whose files were given other names beyond `lsn`, and that still exist. */
  renamedAfter(lsn: Lsn): number[] {
    return [...this.#renamed].flatMap(([space, at]) => (at > lsn && this.#known.has(space) ? [space] : []))
  }

  /**
   * Looks through a chunk of whole mini-transactions; every chunk has to be shown, in order.
   * @param fileMtrs pairs of offsets, as `RingTail` gives them, of the mini-transactions that are about files
   * @returns the tablespaces that the log takes for granted and that nobody has told of, each once, by place
   */
  inspect(bytes: Uint8Array, beginLsn: Lsn, fileMtrs: readonly number[]): UnknownSpaces[] {
    const found: UnknownSpaces[] = []
    for (let i = 0; i < fileMtrs.length; i += 2) {
      const start = fileMtrs[i]!
      const end = fileMtrs[i + 1]!
      const lsn = (beginLsn + end) as Lsn
      const events: SpaceEvent[] = []
      this.#cursor.reset(bytes, start, end - MTR_TRAILER_BYTES)
      while (this.#cursor.next()) collectSpaceEvents(this.#cursor, bytes, lsn, events)
      const created = new Set(events.flatMap(event => (event.kind === 'create' ? [event.space] : [])))
      this.#decide(beginLsn, found, beginLsn + start === this.#suspectLsn ? created : undefined)
      for (const event of events) {
        if (event.kind === 'create' || event.kind === 'modify') this.#names.set(event.space, event.name)
        else if (event.kind === 'rename') this.#names.set(event.space, event.newName)
        else if (event.kind === 'delete') this.#names.delete(event.space)
        // DISCARD TABLESPACE deletes what IMPORT TABLESPACE brings back under the same id.
        if (event.kind !== 'delete' && event.kind !== 'checkpoint') this.#deleted?.delete(event.space)
        if (event.kind === 'create') {
          this.#known.add(event.space)
          this.#created.set(event.space, lsn)
        } else if (event.kind === 'delete') {
          this.#known.delete(event.space)
          this.#deleted?.add(event.space)
          this.#created.delete(event.space)
          this.#renamed.delete(event.space)
        } else if (event.kind === 'rename') {
          this.#known.add(event.space)
          this.#renamed.set(event.space, lsn)
        } else if (event.kind === 'modify' && !this.#known.has(event.space)) {
          this.#known.add(event.space)
          this.#suspects.push(event)
          this.#suspectLsn = lsn
        }
      }
    }
    // Something else follows in this chunk, or the next one will tell.
    if (beginLsn + bytes.length > this.#suspectLsn) this.#decide(beginLsn, found, undefined)
    return found
  }

  #decide(beginLsn: Lsn, found: UnknownSpaces[], created: ReadonlySet<number> | undefined): void {
    const spaces = this.#suspects.filter(event => !created?.has(event.space))
    this.#suspects = []
    if (spaces.length > 0) found.push({ spaces, at: this.#suspectLsn - beginLsn })
  }
}
