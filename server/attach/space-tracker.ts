/**
 * Notices tablespaces whose content is not in the redo log.
 *
 * ALTER TABLE … IMPORT TABLESPACE writes a foreign file into place: no record tells its pages. What the log does have is
 * FILE_MODIFY for a tablespace that it said was deleted (DISCARD TABLESPACE), or that it never said was created. The
 * file's content at that moment must then be copied.
 */
import { MTR_TRAILER_BYTES } from '../../parser/mtr-scanner.ts'
import { RecordCursor } from '../../parser/record-decoder.ts'
import { collectSpaceEvents, type SpaceEvent } from '../../parser/space-events.ts'
import type { Lsn } from '../../protocol/ids.ts'

export interface UnknownSpace {
  readonly space: number
  readonly name: string
  readonly external: boolean
  /** Offset in the chunk of the mini-transaction that names it. */
  readonly at: number
}

export class SpaceTracker {
  readonly #known = new Set<number>()
  readonly #cursor = new RecordCursor()

  /** These tablespaces are in the timeline. */
  know(spaces: Iterable<number>): void {
    for (const space of spaces) this.#known.add(space)
  }

  /** The tablespaces that exist, as far as was told. */
  all(): number[] {
    return [...this.#known]
  }

  knows(space: number): boolean {
    return this.#known.has(space)
  }

  /**
   * Looks through the mini-transactions of a chunk that are about files.
   * @param fileMtrs pairs of offsets, as `RingTail` gives them
   * @returns the tablespaces that the log takes for granted and that nobody has told of, each once
   */
  inspect(bytes: Uint8Array, beginLsn: Lsn, fileMtrs: readonly number[]): UnknownSpace[] {
    const unknown: UnknownSpace[] = []
    for (let i = 0; i < fileMtrs.length; i += 2) {
      const at = fileMtrs[i]!
      const end = fileMtrs[i + 1]!
      const events: SpaceEvent[] = []
      this.#cursor.reset(bytes, at, end - MTR_TRAILER_BYTES)
      while (this.#cursor.next()) collectSpaceEvents(this.#cursor, bytes, (beginLsn + end) as Lsn, events)
      for (const event of events) {
        if (event.kind === 'create') this.#known.add(event.space)
        else if (event.kind === 'delete') this.#known.delete(event.space)
        else if (event.kind === 'modify' && !this.#known.has(event.space)) {
          this.#known.add(event.space)
          unknown.push({ space: event.space, name: event.name, external: event.external, at })
        }
      }
    }
    return unknown
  }
}
