/**
 * The events of the tablespace catalogue and how layers and snapshots store them.
 *
 * An event is what the redo log says of a tablespace as a whole (parser/space-events.ts) or what an import found. Stored
 * are all but checkpoints, which mean nothing to the catalogue:
 *
 *     varint count, then per event: u8 kind | 0x80 if its LSN is below that of the event before,
 *     varint LSN's distance from the event before (the first one's from 0), varint space, and
 *     create, modify, delete   text name, u8 external
 *     rename                   text name, u8 external, text newName, u8 newExternal
 *     trim, size               varint pages
 *     flags                    varint flags
 *     import                   text name, u8 external, varint flags, varint pages
 *     gone                     (nothing)
 */

import type { CheckpointEvent, SpaceEvent } from '../../parser/space-events.ts'
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { ByteReader, ByteWriter } from './varint.ts'

/** An import found this tablespace when it copied the datadir; the LSN is that of the import's beginning. */
export interface ImportEvent {
  readonly kind: 'import'
  readonly lsn: Lsn
  readonly space: number
  readonly name: string
  readonly external: boolean
  readonly flags: number
  readonly pages: number
}
/** An import found that the tablespace is no longer there (it was dropped while the log could not be read). */
export interface GoneEvent {
  readonly kind: 'gone'
  readonly lsn: Lsn
  readonly space: number
}
export type CatalogueEvent = Exclude<SpaceEvent, CheckpointEvent> | ImportEvent | GoneEvent

const KINDS = ['create', 'modify', 'delete', 'rename', 'trim', 'size', 'flags', 'import', 'gone'] as const
const LSN_BACKWARDS = 0x80
const NAME_BYTES_MAX = 4096

export function encodeCatalogueEvents(events: readonly CatalogueEvent[]): Buffer {
  const out = new ByteWriter(events.length * 24 + 16)
  out.varint(events.length)
  let lsn = 0
  for (const event of events) {
    out.u8(KINDS.indexOf(event.kind) | (event.lsn < lsn ? LSN_BACKWARDS : 0))
    out.varint(Math.abs(event.lsn - lsn))
    lsn = event.lsn
    out.varint(event.space)
    switch (event.kind) {
      case 'create':
      case 'modify':
      case 'delete':
        out.text(event.name)
        out.u8(event.external ? 1 : 0)
        break
      case 'rename':
        out.text(event.name)
        out.u8(event.external ? 1 : 0)
        out.text(event.newName)
        out.u8(event.newExternal ? 1 : 0)
        break
      case 'trim':
      case 'size':
        out.varint(event.pages)
        break
      case 'flags':
        out.varint(event.flags)
        break
      case 'import':
        out.text(event.name)
        out.u8(event.external ? 1 : 0)
        out.varint(event.flags)
        out.varint(event.pages)
        break
      case 'gone':
        break
    }
  }
  return out.bytes()
}

/** Throws a plain Error, which names the byte, for what `encodeCatalogueEvents` did not make. */
export function decodeCatalogueEvents(bytes: Uint8Array): CatalogueEvent[] {
  const input = new ByteReader(bytes)
  const count = input.varint()
  // The smallest event has three bytes.
  if (count > input.left / 3) throw new Error(`${count} catalogue events in ${input.left} bytes`)
  const events: CatalogueEvent[] = []
  let previous = 0
  const flag = (): boolean => {
    const value = input.u8()
    if (value > 1) throw new Error(`catalogue event ${events.length} has a flag of ${value}`)
    return value === 1
  }
  const u32 = (): number => {
    const value = input.varint()
    if (value > 0xffffffff) throw new Error(`catalogue event ${events.length} has the number ${value}`)
    return value
  }
  for (let i = 0; i < count; i++) {
    const first = input.u8()
    const kind = KINDS[first & ~LSN_BACKWARDS]
    const distance = input.varint()
    previous += first & LSN_BACKWARDS ? -distance : distance
    if (kind === undefined || previous < 0 || previous > LSN_MAX)
      throw new Error(`catalogue event ${i} is none`)
    const lsn = previous as Lsn
    const space = u32()
    switch (kind) {
      case 'create':
      case 'modify':
      case 'delete':
        events.push({ kind, lsn, space, name: input.text(NAME_BYTES_MAX), external: flag() })
        break
      case 'rename':
        events.push({
          kind,
          lsn,
          space,
          name: input.text(NAME_BYTES_MAX),
          external: flag(),
          newName: input.text(NAME_BYTES_MAX),
          newExternal: flag(),
        })
        break
      case 'trim':
      case 'size':
        events.push({ kind, lsn, space, pages: u32() })
        break
      case 'flags':
        events.push({ kind, lsn, space, flags: u32() })
        break
      case 'import':
        events.push({
          kind,
          lsn,
          space,
          name: input.text(NAME_BYTES_MAX),
          external: flag(),
          flags: u32(),
          pages: u32(),
        })
        break
      case 'gone':
        events.push({ kind, lsn, space })
        break
    }
  }
  input.end()
  return events
}
