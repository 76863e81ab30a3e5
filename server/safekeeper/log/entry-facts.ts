/**
 * What this disk still tells of entries whose payloads it has lost: the table of a damaged pack, or the header of an entry in a damaged
 * segment. What others send in their place must be the same. docs/log-format.md, "Repair".
 */
import type { LogEntry } from './entry.ts'
import { PackFile } from './pack-file.ts'
import type { LogUnit } from './unit-check.ts'

/** All of an entry but its payload, and whether that is held. */
export type EntryFacts = Omit<LogEntry, 'payload' | 'dropped'>

const FACTS = [
  'index',
  'term',
  'kind',
  'timeline',
  'epoch',
  'beginLsn',
  'endLsn',
  'wallTimeUs',
  'payloadCrc',
] as const

/** Of entries [first, last] of the file, those that can be told; never throws. */
export async function factsOf(unit: LogUnit, first: number, last: number): Promise<Map<number, EntryFacts>> {
  const facts = new Map<number, EntryFacts>()
  if (unit instanceof PackFile) {
    // One CRC is over the whole table: all rows, or none.
    for (const row of await unit.heads(first, last).catch(() => [])) facts.set(row.index, row)
    return facts
  }
  for (let index = first; index <= last && !unit.retired; index++) {
    const header = await unit.headerAt(index).catch(() => undefined)
    if (header !== undefined) facts.set(index, header)
  }
  return facts
}

/** In what an entry differs from what is known of it; undefined: in nothing. */
export function differenceOf(entry: EntryFacts, known: EntryFacts): (typeof FACTS)[number] | undefined {
  return FACTS.find(name => entry[name] !== known[name])
}
