/**
 * The tablespaces of a timeline at every LSN: which exist, under which file name, with which flags, how many pages they
 * have, and where an undo tablespace was truncated.
 *
 * Fed with events from the redo log and from imports. An import copies files while they change, and stores what it
 * found as of the LSN C at which it began; the log from C on is applied on top. So the catalogue sees a rename to a name
 * that it knows already, a creation of what exists, a deletion of what it never saw. Every event therefore says how
 * things are from its LSN on, and none depends on how they were before:
 *
 *     create, modify, rename   the tablespace exists and has this name
 *     delete, gone             it does not exist
 *     size, flags              these are its pages, its flags
 *     trim                     it has this many pages, and nothing that the log says of later ones counts any more
 *
 * Applying an event twice changes nothing. An event that only repeats what is known (the server names each file anew
 * after every checkpoint) takes no memory.
 */
import type { Lsn } from '../../../protocol/ids.ts'
import { type CatalogueEvent, decodeCatalogueEvents, encodeCatalogueEvents } from '../catalogue-codec.ts'

export type { CatalogueEvent } from '../catalogue-codec.ts'

export interface SpaceState {
  readonly space: number
  /** `db/table.ibd`, `ibdata1`, `undo001`; an absolute path if `external`. */
  readonly name: string
  readonly external: boolean
  /** FSP_SPACE_FLAGS; 0 between a file's creation and the first write to its page 0, when `pages` is 0 as well. */
  readonly flags: number
  /** FSP_SIZE in pages; 0 while it is not known. */
  readonly pages: number
}

interface FileState {
  readonly name: string
  readonly external: boolean
  readonly exists: boolean
}

/** What holds from which LSN on: ascending LSNs; of equal ones the last counts. */
class Versions<V> {
  readonly lsns: number[] = []
  readonly values: V[] = []
  readonly #equal: (a: V, b: V) => boolean

  constructor(equal: (a: V, b: V) => boolean) {
    this.#equal = equal
  }

  /** Place of the last version at or before the LSN, or -1. */
  at(lsn: number): number {
    const { lsns } = this
    let low = 0
    let high = lsns.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (lsns[middle]! <= lsn) low = middle + 1
      else high = middle
    }
    return low - 1
  }

  get(lsn: number): V | undefined {
    return this.values[this.at(lsn)]
  }

  /** False if it was known already. */
  set(lsn: number, value: V): boolean {
    const place = this.at(lsn)
    // It may stand among those of this very LSN already, or just before them: then it was left out when the log was
    // applied first, and applied again it must not come to stand behind them.
    for (let i = place; i >= 0; i--) {
      if (this.#equal(this.values[i]!, value)) return false
      if (this.lsns[i] !== lsn) break
    }
    this.lsns.splice(place + 1, 0, lsn)
    this.values.splice(place + 1, 0, value)
    return true
  }
}

const sameNumber = (a: number, b: number) => a === b
const sameFile = (a: FileState, b: FileState) =>
  a.exists === b.exists && (!a.exists || (a.name === b.name && a.external === b.external))

class Space {
  readonly files = new Versions<FileState>(sameFile)
  readonly flags = new Versions<number>(sameNumber)
  readonly pages = new Versions<number>(sameNumber)
  /** Truncations, ascending by LSN: from then on what was said of pages >= `pages` is void. */
  readonly trims: { readonly lsn: Lsn; readonly pages: number }[] = []
}

export class Catalogue {
  readonly #spaces = new Map<number, Space>()
  #events = 0

  /** Events that changed something, in other words versions held in memory. */
  get versions(): number {
    return this.#events
  }

  /** True if the event changed anything. */
  apply(event: CatalogueEvent): boolean {
    const { lsn } = event
    const space = this.#space(event.space)
    let changed = false
    switch (event.kind) {
      case 'create':
      case 'modify':
        changed = space.files.set(lsn, { name: event.name, external: event.external, exists: true })
        break
      case 'rename':
        changed = space.files.set(lsn, { name: event.newName, external: event.newExternal, exists: true })
        break
      case 'delete':
        changed = space.files.set(lsn, { name: event.name, external: event.external, exists: false })
        break
      case 'gone': {
        const file = space.files.get(lsn)
        changed = space.files.set(lsn, {
          name: file?.name ?? '',
          external: file?.external ?? false,
          exists: false,
        })
        break
      }
      case 'import':
        changed = space.files.set(lsn, { name: event.name, external: event.external, exists: true })
        changed = space.flags.set(lsn, event.flags) || changed
        changed = space.pages.set(lsn, event.pages) || changed
        break
      case 'flags':
        changed = space.flags.set(lsn, event.flags)
        break
      case 'size':
        changed = space.pages.set(lsn, event.pages)
        break
      case 'trim':
        changed = addTrim(space, lsn, event.pages)
        changed = space.pages.set(lsn, event.pages) || changed
        break
    }
    if (changed) this.#events++
    return changed
  }

  applyAll(events: Iterable<CatalogueEvent>): void {
    for (const event of events) this.apply(event)
  }

  #space(id: number): Space {
    let space = this.#spaces.get(id)
    if (space === undefined) {
      space = new Space()
      this.#spaces.set(id, space)
    }
    return space
  }

  /** The tablespace as of the LSN, or undefined if it does not exist then. */
  spaceAt(id: number, lsn: Lsn): SpaceState | undefined {
    const space = this.#spaces.get(id)
    const file = space?.files.get(lsn)
    if (space === undefined || file === undefined || !file.exists) return undefined
    return {
      space: id,
      name: file.name,
      external: file.external,
      flags: space.flags.get(lsn) ?? 0,
      pages: space.pages.get(lsn) ?? 0,
    }
  }

  /** All tablespaces that exist at the LSN, by id. */
  list(lsn: Lsn): SpaceState[] {
    const states: SpaceState[] = []
    for (const id of this.#spaces.keys()) {
      const state = this.spaceAt(id, lsn)
      if (state !== undefined) states.push(state)
    }
    return states.sort((a, b) => a.space - b.space)
  }

  /**
   * The LSN of the last truncation at or before `lsn` that voids what came before for this page; 0 if there is none.
   */
  trimLsn(id: number, page: number, lsn: Lsn): Lsn {
    const trims = this.#spaces.get(id)?.trims
    if (trims !== undefined)
      for (let i = trims.length - 1; i >= 0; i--) {
        const trim = trims[i]!
        if (trim.lsn <= lsn && page >= trim.pages) return trim.lsn
      }
    return 0 as Lsn
  }

  /** What holds up to and including `upToLsn`, as events in the order of LSNs. */
  events(upToLsn: Lsn): CatalogueEvent[] {
    const events: CatalogueEvent[] = []
    for (const [space, { files, flags, pages, trims }] of this.#spaces) {
      // Truncations first: they set the size as well, which a size at the same LSN may change again.
      for (const trim of trims) events.push({ kind: 'trim', space, lsn: trim.lsn, pages: trim.pages })
      files.values.forEach(({ name, external, exists }, i) => {
        events.push({ kind: exists ? 'modify' : 'delete', space, lsn: files.lsns[i] as Lsn, name, external })
      })
      flags.values.forEach((value, i) => {
        events.push({ kind: 'flags', space, lsn: flags.lsns[i] as Lsn, flags: value })
      })
      pages.values.forEach((value, i) => {
        events.push({ kind: 'size', space, lsn: pages.lsns[i] as Lsn, pages: value })
      })
    }
    // A stable sort: events of one tablespace and LSN stay in the order above.
    return events.filter(event => event.lsn <= upToLsn).sort((a, b) => a.lsn - b.lsn)
  }

  encode(upToLsn: Lsn): Buffer {
    return encodeCatalogueEvents(this.events(upToLsn))
  }

  /** Throws a plain Error for bytes that `encode` did not make. */
  static decode(bytes: Uint8Array): Catalogue {
    const catalogue = new Catalogue()
    catalogue.applyAll(decodeCatalogueEvents(bytes))
    return catalogue
  }
}

function addTrim(space: Space, lsn: Lsn, pages: number): boolean {
  const { trims } = space
  let place = trims.length
  while (place > 0 && trims[place - 1]!.lsn > lsn) place--
  for (let i = place - 1; i >= 0 && trims[i]!.lsn === lsn; i--) if (trims[i]!.pages === pages) return false
  trims.splice(place, 0, { lsn, pages })
  return true
}
