/**
 * Which packs of a backup are to be merged into one, and the pack that comes of it. docs/backup.md, "Small packs", has the reasons.
 *
 * A pack has a level: 0 to 2 for what is small, 3 for what is a quarter full or more and stays as it is. Packs are merged with their
 * neighbours, and only with such of their own level or below, when there are enough of them: so what is large already is not written
 * anew for each small pack that comes, and each byte is written some three times in all.
 */
import { isCorrupt } from '../shared/errors.ts'
import type { ObjectReader } from '../shared/object-store.ts'
import type { BackupManifest, BackupPack } from './backup-manifest.ts'
import { entriesOf } from './backup-reader.ts'
import type { Term } from './core/types.ts'
import { PackBuilder } from './log/pack-builder.ts'

/** Redo in one pack, before compression. */
export const PACK_BYTES = 16 * 1024 * 1024
export const PACK_ENTRIES = 65_536
/** So many of one level are merged. */
export const MERGE_AT_DEFAULT = 16
/** Of all levels: what is mixed, so that no level has enough, is merged all the same. */
const MIXED_FACTOR = 3
/** In one step: each is a request. */
const MERGED_PACKS_MAX = 64
/** Below these a pack is of level 0, 1, 2. */
const LEVEL_BYTES = [64 * 1024, 1024 * 1024, PACK_BYTES / 4]
const LEVEL_ENTRIES = [256, 4096, PACK_ENTRIES / 4]

export interface Merge {
  /** Place of the first in the manifest. */
  readonly at: number
  /** Two or more, which follow each other. */
  readonly packs: readonly BackupPack[]
  /** Of the entry before the first. */
  readonly prevTerm: Term
}

function levelOf({ rawBytes, first, last }: BackupPack): number {
  const below = (value: number, limits: readonly number[]): number => {
    const level = limits.findIndex(limit => value < limit)
    return level < 0 ? limits.length : level
  }
  return Math.max(below(rawBytes, LEVEL_BYTES), below(last - first + 1, LEVEL_ENTRIES))
}

/**
 * What to merge next; undefined if nothing is worth it.
 *
 * @param isBad packs that cannot be read
 */
export function chooseMerge(
  { base, packs }: BackupManifest,
  isBad: (pack: BackupPack) => boolean = () => false,
  mergeAt = MERGE_AT_DEFAULT,
): Merge | undefined {
  const levels = packs.map(levelOf)
  for (let level = 0; level < LEVEL_BYTES.length; level++) {
    // A first pack in which the base lies is left alone: the term before it is not known, and it goes soon.
    let at = packs[0]?.first === base.index + 1 ? 0 : 1
    while (at < packs.length) {
      let end = at
      let exact = 0
      for (; end < packs.length; end++) {
        const pack = packs[end]!
        if (levels[end]! > level || isBad(pack) || pack.tellsVoids !== packs[at]!.tellsVoids) break
        if (levels[end] === level) exact++
      }
      if (exact >= mergeAt || end - at >= mergeAt * MIXED_FACTOR) {
        const chosen = fitting(packs.slice(at, end))
        const prevTerm = at === 0 ? base.term : packs[at - 1]!.lastTerm
        if (chosen.length > 1) return { at, packs: chosen, prevTerm }
      }
      at = Math.max(end, at + 1)
    }
  }
  return undefined
}

/** As many of the first as one pack holds. */
function fitting(packs: readonly BackupPack[]): readonly BackupPack[] {
  let rawBytes = 0
  let entries = 0
  let count = 0
  for (const pack of packs.slice(0, MERGED_PACKS_MAX)) {
    rawBytes += pack.rawBytes
    entries += pack.last - pack.first + 1
    if (rawBytes > PACK_BYTES || entries > PACK_ENTRIES) break
    count++
  }
  return packs.slice(0, count)
}

/** One of them is damaged, or gone. */
export class UnreadablePack extends Error {
  override name = 'UnreadablePack'
  readonly pack: BackupPack

  constructor(pack: BackupPack, cause: Error) {
    super(cause.message, { cause })
    this.pack = pack
  }
}

/**
 * The bytes of the pack that holds all their entries, each checked; redo too that this node's log has given up.
 * Throws UnreadablePack for one of kind corrupt, else what the store throws.
 */
export async function mergedPack(
  store: ObjectReader,
  { packs, prevTerm }: Merge,
  soon: (run: () => void) => void,
): Promise<Buffer> {
  const builder = new PackBuilder({
    firstIndex: packs[0]!.first,
    lastIndex: packs.at(-1)!.last,
    prevTerm,
    generation: 0,
  })
  const pieces: Uint8Array[] = []
  for (const pack of packs) {
    try {
      for await (const entry of entriesOf(store, pack)) builder.add(entry)
    } catch (error) {
      if (isCorrupt(error)) throw new UnreadablePack(pack, error)
      throw error
    }
    pieces.push(...builder.take())
    await new Promise<void>(resolve => soon(resolve))
  }
  builder.finish()
  pieces.push(...builder.take())
  return Buffer.concat(pieces)
}
