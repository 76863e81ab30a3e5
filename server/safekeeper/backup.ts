/**
 * Keeps the cell's log in an object store as well. Runs on every node and works on the leader: packs of committed entries, one
 * after the other, each read back before a manifest names it, and recorded in the cell afterwards. docs/backup.md tells the order
 * and why every way in which it may be cut short is harmless.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import { internalError, PalimpsestError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { Clock } from '../shared/seams.ts'
import { BackupLag } from './backup-lag.ts'
import {
  type BackupManifest,
  BackupManifestObject,
  type BackupPack,
  backupEnd,
  backupKeys,
  newManifest,
} from './backup-manifest.ts'
import {
  chooseMerge,
  MERGE_AT_DEFAULT,
  mergedPack,
  PACK_BYTES,
  PACK_ENTRIES,
  UnreadablePack,
} from './backup-merge.ts'
import { BACKUP_NOTE, type BackupNote, backupNote } from './backup-note.ts'
import type { EntryId, LogIndex, Term } from './core/types.ts'
import { commandDraft } from './draft.ts'
import type { Driver } from './driver.ts'
import type { CellLog } from './log/cell-log.ts'
import { PackBuilder } from './log/pack-builder.ts'
import type { Snapshots } from './snapshots.ts'

export const BACKUP_INTERVAL_MS_DEFAULT = 10_000
const READ_BYTES = 1024 * 1024
const LOOK_MS = 500
const RETRY_MS_MAX = 30_000

export interface BackupOptions {
  readonly cellId: string
  readonly driver: Driver
  readonly log: CellLog
  readonly snapshots: Snapshots
  readonly clock: Clock
  readonly logger: Log
  /** null: the cell is to have no backup (any more). */
  readonly store: ObjectStore | null
  readonly intervalMs: number
  /** So many small packs are merged into one. */
  readonly mergeAt?: number | undefined
  /** Hexadecimal digits of so many random bytes. */
  readonly randomHex: (bytes: number) => string
  /** Runs a function after the events of this turn; setImmediate unless told. */
  readonly soon?: ((run: () => void) => void) | undefined
}

export class Backup {
  readonly #options: BackupOptions
  #manifests: BackupManifestObject | undefined
  #manifest: BackupManifest | undefined
  #manifestTerm: Term | undefined
  #waitingSinceMs: number | undefined
  /** Versions of the manifest that were committed. */
  #commits = 0
  /** Packs that were merged into another, to be removed when there is a further version than that which no longer names them. */
  #merged: { readonly keys: readonly string[]; readonly commits: number } | undefined
  /** What is damaged in the store, by its key, and why. */
  readonly #damaged = new Map<string, string>()
  #closed = false
  /** The last entry applied that was not the backup's own. */
  #newsAt: number
  readonly #lag = new BackupLag()
  /** Why the last attempt failed; empty if all is well. */
  problem = ''

  constructor(options: BackupOptions) {
    this.#options = options
    // Whatever is there may not be backed up.
    this.#newsAt = options.driver.state.last.index
  }

  /** Redo that is committed and not backed up, as far as this node has seen it come. */
  get bytesBehind(): number {
    return this.#lag.bytes
  }

  /** Works until `close`. */
  async run(): Promise<void> {
    const { clock, logger, driver } = this.#options
    let retryMs = LOOK_MS
    while (!this.#closed) {
      await clock.sleep(retryMs)
      if (this.#closed) return
      retryMs = LOOK_MS
      if (!driver.isServing) {
        this.#waitingSinceMs = undefined
        continue
      }
      try {
        await this.#work()
        this.problem = this.#damage()
      } catch (error) {
        const known = toPalimpsestError(error)
        // Whatever it was, what the store holds is looked at anew.
        this.#manifest = undefined
        if (this.#closed || !driver.isServing) continue
        this.problem = known.message
        logger.warn({ err: known }, 'the backup of the log failed; it is tried again')
        retryMs = Math.min(retryMs * 4, RETRY_MS_MAX)
      }
    }
  }

  close(): void {
    this.#closed = true
  }

  async #work(): Promise<void> {
    const { driver, store } = this.#options
    if (store === null) {
      if (backupNote(driver.state) !== undefined) await this.#note(null)
      return
    }
    if (this.#manifest === undefined || this.#manifestTerm !== driver.term) {
      this.#manifest = await this.#begin(store)
      this.#manifestTerm = driver.term
    }
    while (!this.#closed && driver.isServing && this.#isDue()) await this.#upload(store)
    await this.#moveBase(store)
    await this.#removeMerged(store)
    await this.#merge(store)
  }

  /** The manifest as it stands, after what an earlier leader left undone was put in order. */
  async #begin(store: ObjectStore): Promise<BackupManifest> {
    const { cellId, driver, log, logger } = this.#options
    // What was not removed yet is found with the strays.
    this.#merged = undefined
    this.#manifests = new BackupManifestObject(store, cellId)
    const loaded = await this.#manifests.load()
    const strays = await this.#strays(store, loaded)
    let manifest = loaded
    if (manifest !== undefined && backupEnd(manifest).index < log.base.index) {
      logger.warn(
        { end: backupEnd(manifest).index, begin: log.beginIndex },
        'the log begins after the end of its backup, which is begun anew',
      )
      manifest = await this.#replaceBase(store, manifest)
    }
    if (manifest === undefined) {
      const base =
        log.base.index === 0
          ? { index: 0 as LogIndex, term: 0 as Term, key: null }
          : await this.#putState(store)
      manifest = await this.#commit(newManifest(cellId, base))
    }
    if (strays.length > 0) {
      if (manifest === loaded) manifest = await this.#commit(manifest)
      for (const key of strays) await store.delete(key)
      logger.info(
        { objects: strays },
        'removed from the backup what attempts that were cut short had left there',
      )
    }
    this.#manifest = manifest
    const done = backupEnd(manifest).index
    const noted = backupNote(driver.state)
    if (noted?.done !== done || noted.store !== store.description || noted.intent !== null)
      await this.#note({ store: store.description, done, intent: null })
    return manifest
  }

  /**
   * Objects that the manifest does not name: of attempts that were cut short. They may be removed only after a further version of the
   * manifest was committed. Without that:
   *
   *     1. An old leader, or this one with a request that it has given up, has put a pack, and the manifest that names it is under way.
   *     2. The pack is removed, since no manifest names it.
   *     3. That manifest arrives. It names a pack that is gone, and the log is given up as far as it goes.
   *
   * Whoever commits a manifest has loaded the one before earlier than it put the pack. So what was listed here is named by no manifest
   * that can still come to pass once there is a version after the one that was loaded here.
   */
  async #strays(store: ObjectStore, manifest: BackupManifest | undefined): Promise<string[]> {
    const { cellId } = this.#options
    const strays: string[] = []
    // What a manifest that was lost has named, somebody may want to look into.
    if (manifest === undefined) return strays
    const named = new Set([manifest.base.key, ...manifest.packs.map(({ key }) => key)])
    for (const prefix of backupKeys.folders(cellId))
      for (const { key } of await store.list(prefix)) if (!named.has(key)) strays.push(key)
    return strays
  }

  /** Whether there is enough that is not backed up, or something that has waited for long. */
  #isDue(): boolean {
    const { driver, clock, intervalMs } = this.#options
    const { index: end } = backupEnd(this.#manifest!)
    const behind = driver.state.last.index - end
    // What the backup itself has the cell record needs no backup of its own.
    if (behind <= 0 || !this.#hasNews(end)) {
      this.#waitingSinceMs = undefined
      return false
    }
    this.#waitingSinceMs ??= clock.monotonicMs()
    return (
      this.bytesBehind >= PACK_BYTES ||
      behind >= PACK_ENTRIES ||
      clock.monotonicMs() - this.#waitingSinceMs >= intervalMs
    )
  }

  #hasNews(end: number): boolean {
    return this.#newsAt > end
  }

  /** An entry was applied. */
  applied(index: LogIndex, payloadBytes: number, isBackups: boolean): void {
    if (isBackups) {
      this.#lag.backedUp(backupNote(this.#options.driver.state)?.done ?? 0)
      return
    }
    this.#newsAt = index
    this.#lag.applied(index, payloadBytes)
  }

  async #upload(store: ObjectStore): Promise<void> {
    const { driver, log, logger } = this.#options
    const manifest = this.#manifest!
    const { index: end, term: prevTerm } = backupEnd(manifest)
    const first = (end + 1) as LogIndex
    const range = await this.#gather(first, driver.state.last.index, prevTerm)
    const { bytes, last, rawBytes, tellsVoids } = range
    const pack = await this.#putPack(store, bytes, {
      first,
      last: last.index,
      lastTerm: last.term,
      rawBytes,
      tellsVoids,
    })
    await this.#commit({ ...manifest, packs: [...manifest.packs, pack] })
    await this.#note({ store: store.description, done: last.index, intent: null })
    this.#waitingSinceMs = undefined
    logger.debug(
      { first, last: last.index, rawBytes, bytes: bytes.length, begin: log.beginIndex },
      'backed up',
    )
  }

  /** Stores a pack that nobody names yet, and makes sure that it reads back. Returns how a manifest is to name it. */
  async #putPack(
    store: ObjectStore,
    bytes: Buffer,
    what: Omit<BackupPack, 'key' | 'bytes' | 'crc'>,
  ): Promise<BackupPack> {
    const { cellId, randomHex } = this.#options
    const key = backupKeys.pack(cellId, what.first, what.last, randomHex(8))
    await putNew(store, key, bytes)
    return { ...what, key, bytes: bytes.length, crc: crc32c(bytes, 0, bytes.length) }
  }

  /** A pack of the entries from `first` on, as many as fit. */
  async #gather(
    first: LogIndex,
    upTo: LogIndex,
    prevTerm: Term,
  ): Promise<{ bytes: Buffer; last: EntryId; rawBytes: number; tellsVoids: boolean }> {
    const { log, soon = setImmediate } = this.#options
    const entries = []
    let rawBytes = 0
    let next = first as number
    while (next <= upTo && rawBytes < PACK_BYTES && entries.length < PACK_ENTRIES) {
      const read = await log.read(next as LogIndex, upTo, READ_BYTES)
      for (const entry of read) {
        entries.push(entry)
        rawBytes += entry.payload.length
      }
      next += read.length
    }
    const last = entries.at(-1)!
    const builder = new PackBuilder({
      firstIndex: first,
      lastIndex: last.index,
      prevTerm,
      generation: 0,
    })
    const pieces: Uint8Array[] = []
    // Whoever restores finds for himself which are void; a node that has lost a pack's table does not.
    const voids = await log.voids(first, last.index)
    for (const entry of entries) {
      builder.add({ ...entry, isVoid: voids?.has(entry.index) ?? false })
      const made = builder.take()
      if (made.length === 0) continue
      pieces.push(...made)
      // Compressing a group takes milliseconds, which appends should not have to wait for more than once.
      await new Promise<void>(resolve => soon(resolve))
    }
    builder.finish()
    pieces.push(...builder.take())
    return { bytes: Buffer.concat(pieces), last, rawBytes, tellsVoids: voids !== undefined }
  }

  /** Once nobody needs the redo of whole packs any more, the backup begins later. */
  async #moveBase(store: ObjectStore): Promise<void> {
    const { log } = this.#options
    const manifest = this.#manifest!
    const [first] = manifest.packs
    if (first === undefined || first.last > log.base.index || manifest.packs.length < 2) return
    await this.#replaceBase(store, manifest)
  }

  async #replaceBase(store: ObjectStore, manifest: BackupManifest): Promise<BackupManifest> {
    const base = await this.#putState(store)
    const packs = manifest.packs.filter(pack => pack.last > base.index)
    const fits = packs.length > 0 && packs[0]!.first <= base.index + 1
    const kept = fits ? packs : []
    const replaced = await this.#commit({ ...manifest, base, packs: kept })
    const gone = manifest.packs.filter(pack => !kept.includes(pack)).map(pack => pack.key)
    if (manifest.base.key !== null) gone.push(manifest.base.key)
    for (const key of gone) await store.delete(key)
    return replaced
  }

  /** Makes one pack of several small ones that follow each other, if there are enough; docs/backup.md, "Small packs". */
  async #merge(store: ObjectStore): Promise<void> {
    const { driver, logger, mergeAt = MERGE_AT_DEFAULT, soon = setImmediate } = this.#options
    const manifest = this.#manifest!
    if (this.#merged !== undefined || this.#closed || !driver.isServing) return
    const merge = chooseMerge(manifest, ({ key }) => this.#damaged.has(key), mergeAt)
    if (merge === undefined) return
    const { at, packs } = merge
    let bytes: Buffer
    try {
      bytes = await mergedPack(store, merge, soon)
    } catch (error) {
      if (!(error instanceof UnreadablePack)) throw error
      // It is said, and harms nothing else: what is new goes on being backed up.
      this.#damaged.set(error.pack.key, error.message)
      logger.error({ key: error.pack.key, reason: error.message }, 'a pack of the backup is damaged')
      return
    }
    const [first, last] = [packs[0]!, packs.at(-1)!]
    const pack = await this.#putPack(store, bytes, {
      first: first.first,
      last: last.last,
      lastTerm: last.lastTerm,
      rawBytes: packs.reduce((sum, { rawBytes }) => sum + rawBytes, 0),
      tellsVoids: first.tellsVoids,
    })
    await this.#commit({ ...manifest, packs: manifest.packs.toSpliced(at, packs.length, pack) })
    this.#merged = { keys: packs.map(other => other.key), commits: this.#commits }
    logger.debug(
      { first: pack.first, last: pack.last, packs: packs.length, bytes: pack.bytes },
      'packs of the backup merged',
    )
  }

  /** Whoever reads the version before has had at least an upload's time for it by then, and finds them in the new one otherwise. */
  async #removeMerged(store: ObjectStore): Promise<void> {
    if (this.#merged === undefined || this.#merged.commits === this.#commits) return
    for (const key of this.#merged.keys) await store.delete(key)
    this.#merged = undefined
  }

  /** What is damaged and still needed; empty if nothing is. */
  #damage(): string {
    const manifest = this.#manifest
    for (const key of this.#damaged.keys())
      if (manifest !== undefined && !manifest.packs.some(pack => pack.key === key)) this.#damaged.delete(key)
    const [why] = this.#damaged.values()
    return why === undefined ? '' : `the backup is damaged: ${why}`
  }

  /** Puts the state below which nobody needs redo. */
  async #putState(store: ObjectStore): Promise<BackupManifest['base']> {
    const { cellId, snapshots, randomHex } = this.#options
    const { last, bytes } = await snapshots.toSend()
    const key = backupKeys.state(cellId, last.index, randomHex(8))
    await putNew(store, key, bytes)
    return { ...last, key }
  }

  async #commit(manifest: BackupManifest): Promise<BackupManifest> {
    const next = { ...manifest, atUs: this.#options.clock.wallTimeUs() }
    await this.#manifests!.commit(next)
    this.#commits++
    this.#manifest = next
    return next
  }

  async #note(value: BackupNote | null): Promise<void> {
    const result = await this.#options.driver.propose(
      commandDraft({ do: 'note', key: BACKUP_NOTE, value: value as never }),
    )
    if (result.void) throw new PalimpsestError(result.kind, `the backup's progress: ${result.why}`)
  }
}

/** Stores an object under a key that nobody else has, and reads it back. What differs is removed, so that it is never taken for the real thing. */
async function putNew(store: ObjectStore, key: string, bytes: Uint8Array): Promise<void> {
  if (!(await store.putIfAbsent(key, bytes))) throw internalError(`${key} exists already`)
  const stored = await store.get(key)
  if (stored?.equals(bytes)) return
  await store.delete(key)
  throw internalError(
    `${key} in ${store.description} does not read back as it was written (${stored?.length ?? 'no'} bytes instead of ${bytes.length})`,
  )
}
