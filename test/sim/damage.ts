/**
 * Damage to what a node has acknowledged: one bit of one of its files, at rest or while it runs. Of the kind that must be noticed: the last
 * batch before a crash cannot be told from one that was never synced (docs/log-format.md), so what is turned in raw segments is
 * known to be flushed by a later entry.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import { decodeEntryHeader, ENTRY_HEADER_BYTES, type EntryHeader } from '../../server/safekeeper/log/entry.ts'
import { packEntries, packSourceOf } from '../../server/safekeeper/log/pack-reader.ts'
import type { MemoryDisk } from '../support/memory-disk.ts'
import type { SimRandom } from './world.ts'

const SEGMENT = /\/log\/[0-9]{20}\.seg$/
const PACK = /\/log\/[0-9]{20}\.pack$/
const VOTE = /\/vote\.json$/
const LINE = /\/(?:node|node-copy|snapshot-[0-9]+)\.json$|\/log\/state$/
const VOTE_PLACE_BYTES = 4096

export interface Damage {
  readonly path: string
  readonly what: string
  /** Whether that file, as it is now, does not have it any more. */
  isMended(disk: MemoryDisk): Promise<boolean>
}

/** Turns a bit. undefined: there is nothing to damage. */
export function flipBit(disk: MemoryDisk, random: SimRandom): Damage | undefined {
  let damage: Damage | undefined
  for (let tries = 0; damage === undefined && tries < 4; tries++) damage = flipSome(disk, random)
  return damage
}

function flipSome(disk: MemoryDisk, random: SimRandom): Damage | undefined {
  const kind = random.pick(['segment', 'segment', 'header', 'pack', 'pack', 'vote', 'line'] as const)
  if (kind === 'segment') return flipEntry(disk, random)
  const paths = disk
    .paths()
    .filter(path => ({ header: SEGMENT, pack: PACK, vote: VOTE, line: LINE })[kind].test(path))
  if (paths.length === 0) return undefined
  const path = random.pick(paths)
  const bytes = disk.content(path)
  if (kind === 'header') {
    const offset = random.int(0, 63)
    return flip(disk, path, offset, random, 'of a segment header', async at => isHeaderRight(at))
  }
  if (kind === 'pack') {
    return flip(disk, path, random.int(0, bytes.length - 1), random, 'of a pack', isPackRight)
  }
  if (kind === 'vote') {
    const place = random.pick([0, VOTE_PLACE_BYTES])
    const length = bytes.subarray(place, place + VOTE_PLACE_BYTES).indexOf(0x20)
    if (length <= 0) return undefined
    return flip(disk, path, place + random.int(0, length - 2), random, 'of a vote', async at =>
      at.subarray(0, VOTE_PLACE_BYTES).equals(at.subarray(VOTE_PLACE_BYTES)),
    )
  }
  const offset = random.int(0, bytes.length - 2)
  return flip(disk, path, offset, random, 'of a small file', async at => isLineRight(at))
}

function flip(
  disk: MemoryDisk,
  path: string,
  offset: number,
  random: SimRandom,
  what: string,
  isRight: (bytes: Buffer) => Promise<boolean>,
): Damage {
  disk.flip(path, offset, 1 << random.int(0, 7))
  return {
    path,
    what: `a bit ${what} is turned, ${path} at ${offset}`,
    isMended: async now => !now.paths().includes(path) || isRight(now.content(path)),
  }
}

function flipEntry(disk: MemoryDisk, random: SimRandom): Damage | undefined {
  const entries: { readonly path: string; readonly at: number; readonly header: EntryHeader }[] = []
  for (const path of disk.paths()) {
    if (!SEGMENT.test(path)) continue
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
  return flip(disk, path, offset, random, `of entry ${header.index}`, async bytes => {
    // Cut off at a start and written anew, or of a later use of the file.
    const now = decodeEntryHeader(bytes, at)
    if (now === undefined) return false
    const begin = at + ENTRY_HEADER_BYTES
    return now.dropped || crc32c(bytes, begin, begin + now.payloadBytes) === now.payloadCrc
  })
}

function isHeaderRight(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 8) === 'PLCELSEG' && crc32c(bytes, 16, 64) === bytes.readUInt32LE(12)
}

async function isPackRight(bytes: Buffer): Promise<boolean> {
  try {
    for await (const _ of packEntries(packSourceOf('simulated', bytes)));
    return true
  } catch {
    return false
  }
}

function isLineRight(bytes: Buffer): boolean {
  const end = bytes.indexOf('\n')
  return (
    end >= 0 &&
    bytes.toString('latin1', end + 1) === `${crc32c(bytes, 0, end).toString(16).padStart(8, '0')}\n`
  )
}
