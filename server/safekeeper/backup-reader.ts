/**
 * Reading a cell's backup, while the cell may be going on with it: packs are merged and its beginning moves, so what a manifest
 * names may be gone when it is read, though nothing is lost. Then the manifest of that moment tells where it is now.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import { corruptError, invalidError, retryError } from '../shared/errors.ts'
import type { ObjectReader } from '../shared/object-store.ts'
import { type BackupManifest, type BackupPack, backupEnd, loadManifest } from './backup-manifest.ts'
import { CellState } from './cell-state.ts'
import type { PackEntry } from './log/pack-codec.ts'
import { packEntries, packSourceOf } from './log/pack-reader.ts'

/** Told after each pack. */
export type BackupProgress = (done: number, all: number) => void

/** The manifest of a cell's backup. Throws kind invalid if there is none. */
export async function loadBackup(store: ObjectReader, cellId: string): Promise<BackupManifest> {
  const manifest = await loadManifest(store, cellId)
  if (manifest !== undefined) return manifest
  throw invalidError(
    `${store.description} has no backup of cell ${cellId}; "palimpsest backup list" shows what there is`,
  )
}

/** The same with the state at which the backup begins. Throws kind corrupt if that is gone or damaged. */
export async function loadStart(
  store: ObjectReader,
  cellId: string,
): Promise<{ manifest: BackupManifest; base: CellState }> {
  let manifest = await loadBackup(store, cellId)
  for (;;) {
    const { index, term, key } = manifest.base
    if (key === null) return { manifest, base: new CellState({ voters: [], learners: [] }, { index, term }) }
    const bytes = await store.get(key)
    if (bytes !== undefined) {
      const base = CellState.decode(bytes)
      if (base.last.index !== index || base.last.term !== term)
        throw corruptError(`${key} in ${store.description} is the state of another entry`)
      return { manifest, base }
    }
    const newer = await loadBackup(store, cellId)
    if (newer.base.key === key) throw corruptError(`${key} in ${store.description} is missing`)
    manifest = newer
  }
}

/** The entries of a pack of the backup, each checked. Throws kind corrupt. */
export async function* entriesOf(store: ObjectReader, pack: BackupPack): AsyncGenerator<PackEntry> {
  const bytes = await store.get(pack.key)
  if (bytes === undefined) throw missing(store, pack)
  yield* decoded(store, pack, bytes)
}

function missing(store: ObjectReader, { key }: BackupPack): Error {
  return corruptError(`${key} in ${store.description} is missing`)
}

async function* decoded(store: ObjectReader, pack: BackupPack, bytes: Buffer): AsyncGenerator<PackEntry> {
  const where = `${pack.key} in ${store.description}`
  if (bytes.length !== pack.bytes || crc32c(bytes, 0, bytes.length) !== pack.crc)
    throw corruptError(`${where} does not have the bytes that the manifest tells`)
  let next: number = pack.first
  for await (const entry of packEntries(packSourceOf(where, bytes))) {
    if (entry.index !== next) throw corruptError(`${where}: entry ${entry.index} where ${next} is next`)
    next++
    yield entry
  }
  if (next !== pack.last + 1) throw corruptError(`${where} ends at entry ${next - 1} instead of ${pack.last}`)
}

/**
 * All entries that the manifest has, in order and each checked, from the first of its first pack on, which may lie below its base.
 * Throws kind corrupt, naming the object, for whatever is not right, and retry if the backup's beginning has moved beyond what was read.
 */
export async function* backupEntries(
  store: ObjectReader,
  manifest: BackupManifest,
  progress: BackupProgress = () => {},
): AsyncGenerator<PackEntry> {
  const { cellId, packs } = manifest
  const { index: end } = backupEnd(manifest)
  let current = manifest
  let next: number = packs[0]?.first ?? end + 1
  let at = 0
  let done = 0
  while (next <= end) {
    while (at < current.packs.length && current.packs[at]!.last < next) at++
    const pack = current.packs[at]
    if (pack === undefined || pack.first > next)
      throw retryError(
        `the backup of cell ${cellId} in ${store.description} now begins after entry ${current.base.index}, and was read up to ${next - 1}: start again`,
      )
    const bytes = await store.get(pack.key)
    if (bytes === undefined) {
      const newer = await loadManifest(store, cellId)
      if (newer === undefined || newer.packs.some(({ key }) => key === pack.key)) throw missing(store, pack)
      current = newer
      at = 0
      continue
    }
    for await (const entry of decoded(store, pack, bytes)) {
      if (entry.index < next) continue
      if (entry.index > end) break
      next = entry.index + 1
      yield entry
    }
    const before = done
    while (done < packs.length && packs[done]!.last < next) done++
    if (done > before) progress(done, packs.length)
  }
}
