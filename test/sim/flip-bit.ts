/** Damage to what a node has acknowledged, of the kind that must be noticed when it starts. */
import { decodeEntryHeader, ENTRY_HEADER_BYTES, type EntryHeader } from '../../server/safekeeper/log/entry.ts'
import type { MemoryDisk } from '../support/memory-disk.ts'
import type { SimRandom } from './world.ts'

/**
 * Turns a bit of an entry in a raw segment that a later one says was flushed; the damage of the last batch before a crash cannot be
 * told from a batch that was never synced (docs/log-format.md). Tells what it did; undefined if there is no such entry.
 */
export function flipBit(disk: MemoryDisk, random: SimRandom): string | undefined {
  const entries: { readonly path: string; readonly at: number; readonly header: EntryHeader }[] = []
  for (const path of disk.paths()) {
    if (!/\/log\/[0-9]{20}\.seg$/.test(path)) continue
    const bytes = disk.content(path)
    for (let at = 4096; at + ENTRY_HEADER_BYTES <= bytes.length; at += 8) {
      const header = decodeEntryHeader(bytes, at)
      if (header !== undefined) entries.push({ path, at, header })
    }
  }
  const generation = Math.max(0, ...entries.map(({ header }) => header.generation))
  const live = entries.filter(({ header }) => header.generation === generation)
  const targets = live.filter(({ header }) =>
    live.some(other => other.header.index > header.index && other.header.flushed >= header.index),
  )
  if (targets.length === 0) return undefined
  const { path, at, header } = random.pick(targets)
  const offset = at + random.int(0, ENTRY_HEADER_BYTES + header.payloadBytes - 1)
  disk.content(path)[offset]! ^= 1 << random.int(0, 7)
  return `a bit of entry ${header.index} is turned, ${path} at ${offset}`
}
