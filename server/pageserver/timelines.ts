/** The timelines of a page server: found in the store at start, created, looked up, deleted. */
import { checkTimelineName, type TimelineId } from '../../protocol/ids.ts'
import type { TimelineBranch, TimelineRename } from '../../protocol/messages-branch.ts'
import type { TimelineCreate } from '../../protocol/messages-timeline.ts'
import { invalidError, PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { Turns } from '../shared/turns.ts'
import { createBranch } from './branches.ts'
import { CapturedFiles } from './captured-files.ts'
import { loadCatalogue } from './catalogue-store.ts'
import { Compactor } from './compactor.ts'
import { Catalogue } from './core/catalogue.ts'
import { TimeMap } from './core/time-map.ts'
import { atMost, forEachAtMost, type PageServerEnvironment } from './environment.ts'
import { readLayerExtras } from './layer-extras.ts'
import { LayerSet, missingLayer } from './layer-store.ts'
import {
  type LayerEntry,
  listTimelines,
  type Manifest,
  ManifestClaim,
  ManifestStore,
  timelineKeys,
  timelineOfKey,
} from './manifest.ts'
import { type Ancestor, Timeline } from './timeline.ts'
import { WalFollower } from './wal-follower.ts'

/** Timelines that are opened at one time: each is some questions to the store, one after the other. */
const OPENED_MAX = 16
/** A clean stop tries for so long to make the last redo durable. */
const CLOSE_MS = 10_000

/** One timeline and what works on it. */
export interface TimelineHost {
  readonly timeline: Timeline
  readonly follower: WalFollower
  readonly compactor: Compactor
}

/** A timeline that could not be opened. */
export interface BrokenTimeline {
  readonly id: TimelineId
  /** As far as that is known: else as it was made, or the id. */
  readonly name: string
  readonly manifest: Manifest | undefined
  readonly error: PalimpsestError
}

export class Timelines {
  readonly #env: PageServerEnvironment
  readonly #hosts = new Map<TimelineId, TimelineHost>()
  /** Timelines that could not be opened, and why: their requests are told. */
  readonly #broken = new Map<TimelineId, BrokenTimeline>()
  /** The claims of those that could not be opened then, whatever came of them. */
  readonly #claims = new Map<TimelineId, ManifestClaim>()
  #retryStopped = false
  #retrying = false
  /** Creations and deletions, one after the other. */
  readonly #changes = new Turns()
  #closing = false

  constructor(env: PageServerEnvironment) {
    this.#env = env
  }

  /**
   * Opens everything that the store holds. A timeline that cannot be opened does not keep the others from it.
   *
   * @param retryStopped timelines that damaged redo stopped take it in again, as if it had not been
   */
  async open(retryStopped = false): Promise<void> {
    this.#retryStopped = retryStopped
    const claimed: ManifestStore[] = []
    await forEachAtMost(OPENED_MAX, await listTimelines(this.#env.store), async id => {
      try {
        const manifest = await this.#claim(id)
        if (manifest !== undefined) claimed.push(manifest)
      } catch (error) {
        await this.#cannotOpen(id, error)
      }
    })
    // Ancestors before their branches.
    const depths = Map.groupBy(claimed, manifest => manifest.current.ancestors.length)
    for (const depth of [...depths.keys()].sort((a, b) => a - b))
      await forEachAtMost(OPENED_MAX, depths.get(depth)!, async manifest => {
        try {
          await this.#takeOver(manifest)
        } catch (error) {
          await this.#cannotOpen(manifest.current.timeline, error)
        }
      })
    this.#forgetCopies()
  }

  /** Of layers that no manifest names; of timelines that could not be opened that is not known. */
  #forgetCopies(): void {
    const named = new Set<string>()
    for (const { layers } of this.all) for (const { key } of layers) named.add(key)
    this.#env.layers.forgetAll(key => {
      const owner = timelineOfKey(key)
      return !named.has(key) && (owner === undefined || !this.#broken.has(owner))
    })
  }

  /** Undefined if there is no such timeline. The claim is kept until the timeline is open, or known not to be there. */
  async #claim(id: TimelineId): Promise<ManifestStore | undefined> {
    const claim = this.#claims.get(id) ?? new ManifestClaim(this.#env.store, id)
    this.#claims.set(id, claim)
    try {
      const manifest = await claim.take()
      if (manifest === undefined) this.#claims.delete(id)
      return manifest
    } catch (error) {
      if (toPalimpsestError(error).kind === 'fenced') this.#claims.delete(id)
      throw error
    }
  }

  /** What a timeline needs that has just been claimed. */
  async #takeOver(manifest: ManifestStore): Promise<Timeline> {
    const removed = await manifest.removeOrphans()
    if (removed.length > 0)
      this.#env.log.info(
        { timeline: manifest.current.timeline, objects: removed.length },
        'removed objects of an interrupted write',
      )
    if (this.#retryStopped && manifest.current.stopped !== null)
      await manifest.update(current => ({ ...current, stopped: null }))
    const timeline = await this.#load(manifest)
    this.#claims.delete(timeline.id)
    return timeline
  }

  /** Opens those that could not be opened for a reason that passes: the store was out of reach. To be called now and then. */
  async retryBroken(): Promise<void> {
    const passing = [...this.#broken.values()]
      .filter(({ error }) => error.kind === 'retry')
      .map(({ id }) => id)
    if (passing.length === 0 || this.#retrying) return
    this.#retrying = true
    await this.#changes.run(async () => {
      for (const id of passing) {
        // Deleted meanwhile, and perhaps made again.
        if (this.#closing || !this.#broken.has(id)) continue
        try {
          const manifest = await this.#claim(id)
          if (manifest !== undefined) await this.#takeOver(manifest)
          this.#broken.delete(id)
          this.#env.log.info({ timeline: id }, 'a timeline could be opened after all')
        } catch (error) {
          await this.#cannotOpen(id, error)
          // While the store is away each attempt takes long, and whoever wants to change something waits. The next time
          // it is the others' turn first.
          break
        }
      }
    })
    this.#retrying = false
  }

  async #cannotOpen(id: TimelineId, thrown: unknown): Promise<void> {
    const error = toPalimpsestError(thrown, `timeline ${id} could not be opened`)
    const before = this.#broken.get(id)
    const manifest = this.#claims.get(id)?.found
    const name = manifest?.name ?? before?.name ?? (await nameOf(this.#env.store, id))
    this.#broken.delete(id)
    this.#broken.set(id, { id, name, manifest, error })
    if (before?.error.message !== error.message)
      this.#env.log.error({ err: error, timeline: id, timelineName: name }, 'a timeline could not be opened')
  }

  /** The timeline that a branch began as. Throws if that could not be opened. */
  #ancestorOf(manifest: ManifestStore): Ancestor | undefined {
    const [nearest] = manifest.current.ancestors
    return nearest && { timeline: this.get(nearest.timeline), lsn: nearest.lsn }
  }

  async #load(manifest: ManifestStore): Promise<Timeline> {
    const catalogue = await loadCatalogue(this.#env.store, manifest.current, layer => this.#events(layer))
    const files = await CapturedFiles.load(this.#env.store, manifest.current)
    const ancestor = this.#ancestorOf(manifest)
    const timeline = new Timeline(this.#env, { manifest, catalogue, times: new TimeMap(), files, ancestor })
    this.#host(timeline)
    return timeline
  }

  /** Nobody deletes the layer meanwhile: the timeline has just been claimed. */
  async #events(layer: LayerEntry) {
    const set = new LayerSet(this.#env.layers, async error => {
      const known = toPalimpsestError(error)
      return known.kind === 'refresh' ? missingLayer(layer.key, this.#env.store) : known
    })
    try {
      return (await readLayerExtras(this.#env, set, layer)).events
    } finally {
      set.release()
    }
  }

  #host(timeline: Timeline): void {
    const follower = new WalFollower(timeline, {
      safekeepers: this.#env.safekeepers,
      consumer: this.#env.consumer,
      log: timeline.log,
    })
    const compactor = new Compactor(timeline)
    timeline.onDurable = () => void follower.trim()
    timeline.onStopped = () => void follower.close()
    timeline.onLayers = () => compactor.wake()
    this.#hosts.set(timeline.id, { timeline, follower, compactor })
    compactor.wake()
  }

  /** Timelines that could not be opened. */
  get broken(): Iterable<BrokenTimeline> {
    return this.#broken.values()
  }

  get brokenCount(): number {
    return this.#broken.size
  }

  get all(): Iterable<Timeline> {
    return [...this.#hosts.values()].map(host => host.timeline)
  }

  /** Throws `invalid` if there is none, or why it could not be opened. */
  get(id: TimelineId): Timeline {
    const found = this.find(id)
    if (found instanceof Timeline) return found
    throw found.error
  }

  /** The same, also of those that could not be opened. */
  find(id: TimelineId): Timeline | BrokenTimeline {
    const found = this.#hosts.get(id)?.timeline ?? this.#broken.get(id)
    if (found !== undefined) return found
    throw invalidError(`there is no timeline ${id} on this page server`)
  }

  findByName(name: string): Timeline | BrokenTimeline {
    for (const found of this.#known()) if (found.name === name) return found
    throw invalidError(`there is no timeline named ${name} on this page server`)
  }

  *#known(): Iterable<Timeline | BrokenTimeline> {
    yield* this.all
    yield* this.broken
  }

  branchesOf(timeline: Timeline): Timeline[] {
    return [...this.all].filter(other => other.ancestor?.timeline === timeline)
  }

  /** Makes the timeline; the same request again changes nothing. */
  create(request: TimelineCreate): Promise<void> {
    return this.#change(async () => {
      const existing = this.#hosts.get(request.timeline)?.timeline ?? (await this.#leftOver(request.timeline))
      if (existing !== undefined) {
        const { name, startLsn, innodbPageSize } = existing.manifest.current
        if (
          name === request.name &&
          startLsn === request.startLsn &&
          innodbPageSize === request.innodbPageSize
        )
          return
        throw invalidError(
          `timeline ${request.timeline} exists as ${name}, from LSN ${startLsn}, with pages of ${innodbPageSize} bytes`,
        )
      }
      this.#checkNameFree(request.name)
      const { timeline, name, innodbPageSize, serverVersion, startLsn } = request
      const manifest = await ManifestStore.create(this.#env.store, {
        timeline,
        name,
        innodbPageSize,
        serverVersion,
        startLsn,
      })
      const files = new CapturedFiles(this.#env.store, timeline)
      const parts = { manifest, catalogue: new Catalogue(), times: new TimeMap(), files }
      this.#host(new Timeline(this.#env, parts))
      this.#env.log.info({ timeline, timelineName: name, startLsn }, 'timeline created')
    })
  }

  /** Makes a branch; the same request again changes nothing. */
  branch(request: TimelineBranch): Promise<void> {
    return this.#change(async () => {
      const { timeline: id, name, lsn } = request
      const existing = this.#hosts.get(id)?.timeline ?? (await this.#leftOver(id))
      if (existing !== undefined) {
        const { ancestors } = existing.manifest.current
        // Asked for as a branch of a branch, it may have become one of the ancestor that has the LSN.
        if (existing.name === name && ancestors[0]?.lsn === lsn) return
        throw invalidError(`timeline ${id} exists already, as ${existing.name}`)
      }
      this.#checkNameFree(name)
      const manifest = await createBranch(this.#env.store, this.get(request.ancestor), request)
      const { ancestor } = await this.#load(manifest)
      this.#env.log.info({ timeline: id, name, ancestor: ancestor?.timeline.id, lsn }, 'branch created')
    })
  }

  /** A timeline whose creation was given up, although the store had it: its reply was lost. */
  async #leftOver(id: TimelineId): Promise<Timeline | undefined> {
    const broken = this.#broken.get(id)
    if (broken !== undefined) throw broken.error
    const manifest = await this.#claim(id)
    return manifest && this.#takeOver(manifest)
  }

  rename(request: TimelineRename): Promise<void> {
    return this.#change(async () => {
      const timeline = this.get(request.timeline)
      const { name } = request
      if (timeline.name === name) return
      this.#checkNameFree(name)
      const before = timeline.name
      await timeline.manifest.update(current => ({ ...current, name }))
      this.#env.log.info({ timeline: timeline.id, before, name }, 'timeline renamed')
    })
  }

  #checkNameFree(name: string): void {
    for (const { name: taken, id } of this.#known())
      if (taken === name) throw invalidError(`there is a timeline named ${name} already: ${id}`)
  }

  /**
   * Throws `invalid` while branches still need its layers. One that failed half-way can be asked for again. What could not be
   * opened can be deleted too, if its manifest can be read.
   */
  delete(id: TimelineId): Promise<void> {
    return this.#change(async () => {
      const { name } = this.find(id)
      await this.#checkNoBranches(id, name)
      const host = this.#hosts.get(id)
      if (host === undefined) await (await this.#claim(id))?.deleteTimeline()
      else await deleteHosted(host)
      this.#hosts.delete(id)
      this.#broken.delete(id)
      this.#claims.delete(id)
      this.#env.layers.forgetAll(key => timelineOfKey(key) === id)
      this.#env.log.info({ timeline: id, timelineName: name }, 'timeline deleted')
    })
  }

  /** The store is asked, too: of a branch whose creation was given up here, its reply lost, this page server does not know. */
  async #checkNoBranches(id: TimelineId, name: string): Promise<void> {
    const branches: string[] = []
    for (const other of await listTimelines(this.#env.store)) {
      if (other === id) continue
      const known = this.#hosts.get(other)?.timeline.manifest.current ?? this.#broken.get(other)?.manifest
      const manifest = known ?? (await this.#manifestOf(other, name))
      if (manifest?.ancestors.some(({ timeline }) => timeline === id)) branches.push(manifest.name)
    }
    if (branches.length > 0)
      throw invalidError(`timeline ${name} has branches (${branches.join(', ')}): delete these first`)
  }

  /** Of one that is not open, and may be a branch of the one that is to be deleted. */
  async #manifestOf(id: TimelineId, deleted: string): Promise<Manifest | undefined> {
    try {
      return await ManifestStore.read(this.#env.store, id)
    } catch (error) {
      const { kind, message } = toPalimpsestError(error)
      throw new PalimpsestError(
        kind,
        `timeline ${id} may be a branch of ${deleted}, which is therefore not deleted: ${message}`,
      )
    }
  }

  #change<T>(work: () => Promise<T>): Promise<T> {
    return this.#changes.run(() => {
      if (this.#closing) throw retryError('the page server is shutting down')
      return work()
    })
  }

  /** No arena is free: idle timelines give theirs back, or else, unless a layer is being written, the fullest is. */
  relieve(): void {
    let fullest: Timeline | undefined
    let flushing = false
    let freed = false
    for (const timeline of this.all) {
      flushing ||= timeline.flushing
      if (timeline.openBytes === 0 && timeline.ingest.letGo()) freed = true
      if (fullest === undefined || timeline.openBytes > fullest.openBytes) fullest = timeline
    }
    if (!flushing && !freed) fullest?.freeze()
  }

  /** Writes out what has been in memory for long. */
  freezeOld(ageMs: number): void {
    for (const timeline of this.all) timeline.freezeIfOlder(ageMs)
  }

  /** Resolves when no compaction has anything left to do. */
  async compacted(): Promise<void> {
    for (const { compactor } of this.#hosts.values()) await compactor.idle()
  }

  /** Stops following and compacting, makes durable what is in memory, and lets the readers finish. */
  async close(): Promise<void> {
    this.#closing = true
    // What waits for a store that does not answer gives up when the timelines do.
    await atMost(this.#changes.done(), CLOSE_MS)
    const closed = new Set<TimelineHost>()
    for (let open = [...this.#hosts.values()]; open.length > 0; ) {
      await Promise.all(open.map(closeHost))
      for (const host of open) closed.add(host)
      await this.#changes.done()
      // One may have come of a change that was under way.
      open = [...this.#hosts.values()].filter(host => !closed.has(host))
    }
  }
}

async function deleteHosted({ timeline, follower, compactor }: TimelineHost): Promise<void> {
  // Both may be waiting for the store, which they give up with the timeline.
  const ended = Promise.all([follower.close(), compactor.close()])
  await timeline.close(true)
  await ended
  await timeline.stack.readersGone()
  await timeline.files.close()
  await timeline.manifest.deleteTimeline()
  timeline.discard()
}

/** What the index says, which is as the timeline was made; or else its id. */
async function nameOf(store: ObjectStore, id: TimelineId): Promise<string> {
  try {
    return checkTimelineName((await store.get(timelineKeys.index(id)))?.toString('utf8').trim() ?? id)
  } catch {
    return id
  }
}

async function closeHost({ timeline, follower, compactor }: TimelineHost): Promise<void> {
  const { isFollowing } = follower
  const ended = Promise.all([follower.close(), compactor.close()])
  try {
    // Not needed for safety, since the safekeeper keeps what is not durable, but the next start is quicker. Where no safekeeper
    // answers, their cell may be made again of less than we have: what is in memory only we forget, what is durable would part us
    // from the new cell for good.
    if (timeline.state !== 'stopped' && isFollowing) await atMost(timeline.checkpoint(), CLOSE_MS)
  } catch (error) {
    timeline.log.warn({ err: error }, 'the last redo was not made durable; the safekeeper still has it')
  }
  await timeline.close()
  await ended
}
