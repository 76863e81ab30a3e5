/**
 * From frozen memtables to durable layers.
 *
 *     1. a worker writes the layer to a scratch file, 2. the store takes it, 3. a manifest lists it, 4. durableLsn has risen,
 *     and the safekeeper may trim
 *
 * Files are written side by side; manifests in LSN order. Each step is tried until it succeeds, since the redo stays in
 * memory until then: unless the timeline has another owner, is deleted, or the page server stops, or what is wrong does not
 * pass: bytes that are damaged, or a manifest that would contradict the one before.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { type PalimpsestError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { Turns } from '../shared/turns.ts'
import type { TimeMap } from './core/time-map.ts'
import { delay, type PageServerEnvironment, removeScratch } from './environment.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { ImpossibleManifestError, layerEntry, type Manifest, type ManifestStore } from './manifest.ts'
import type { Memtable } from './memtable.ts'

const RETRY_MS = 1000

/** What the flusher asks of its timeline. */
export interface FlushedTimeline {
  readonly env: PageServerEnvironment
  readonly log: Log
  readonly manifest: ManifestStore
  readonly times: TimeMap
  scratchPath(what: string): string
  /** What a manifest that ends here says of damaged redo. */
  stoppedAt(durableLsn: Lsn): Manifest['stopped']
  /** In the turn in which this is called the memtable leaves the list. */
  layerAdded(): void
  /** For the status. */
  held(problem: string): void
  /** It cannot go on. */
  flushFailed(error: unknown): void
  /** `durableLsn` has risen. */
  madeDurable(): void
}

interface WrittenLayer {
  readonly key: string
  readonly summary: LayerSummary
}

export class Flusher {
  readonly #timeline: FlushedTimeline
  /** Oldest first. */
  readonly #memtables: Memtable[] = []
  readonly #commits = new Turns()
  #isClosed = false

  constructor(timeline: FlushedTimeline) {
    this.#timeline = timeline
  }

  /** Those that are in no layer yet, oldest first. */
  get memtables(): readonly Memtable[] {
    return this.#memtables
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  add(memtable: Memtable): void {
    const { env } = this.#timeline
    this.#memtables.push(memtable)
    const since = env.nowMs()
    const written = this.#write(memtable)
    // Its failure is dealt with where it is awaited.
    written.catch(() => {})
    this.#commits
      .run(async () => {
        await this.#commit(memtable, await written)
        env.metrics.flushSeconds.observe((env.nowMs() - since) / 1000)
      })
      .catch(error => this.#timeline.flushFailed(error))
  }

  /** Resolves when all that was added so far is durable, or cannot be made so. */
  idle(): Promise<void> {
    return this.#commits.done()
  }

  /**
   * A restart must not begin where the damage is as if nothing were known of it. What came before it is made durable first,
   * or else it could not be read any more: with the last memtable's manifest, or with one of its own if that is durable
   * already.
   */
  rememberStop(): void {
    const { manifest } = this.#timeline
    this.#commits
      .run(() =>
        this.#persist('noting in the manifest that the redo is damaged', async () => {
          const { stopped, durableLsn } = manifest.current
          if (stopped !== null || this.#timeline.stoppedAt(durableLsn) === null) return
          await manifest.update(current => ({
            ...current,
            stopped: this.#timeline.stoppedAt(current.durableLsn),
          }))
        }),
      )
      .catch(error => this.#timeline.flushFailed(error))
  }

  /** Nothing of what is left can become durable any more: its memory is for others. */
  abandon(): void {
    this.#isClosed = true
    for (const memtable of this.#memtables.splice(0)) memtable.markFlushed()
  }

  /** Waits for what is being written, without trying again what fails. */
  async close(): Promise<void> {
    this.#isClosed = true
    await this.#commits.done()
  }

  async #write(memtable: Memtable): Promise<WrittenLayer> {
    const { env, manifest } = this.#timeline
    const { path, summary } = await this.#persist('writing a layer', () => this.#writeFile(memtable))
    const key = manifest.layerKey('delta', 0, memtable.beginLsn, memtable.endLsn)
    try {
      await this.#persist('storing a layer', () => env.layers.put(key, path))
    } catch (error) {
      await removeScratch(path)
      throw error
    }
    return { key, summary }
  }

  async #writeFile(memtable: Memtable): Promise<{ path: string; summary: LayerSummary }> {
    const { env, manifest, times } = this.#timeline
    const path = this.#timeline.scratchPath('delta')
    const triples = memtable.toTriples()
    const { beginLsn: lsnStart, endLsn: lsnEnd, events } = memtable
    const { timeline, generation } = manifest.current
    const samples = times.samplesIn(lsnStart, lsnEnd)
    const input = { triples, path, timeline, generation, lsnStart, lsnEnd, events, samples }
    memtable.acquire()
    try {
      return { path, summary: await env.background.run('flush', input, [triples.buffer]) }
    } catch (error) {
      // Of a thread that died.
      await removeScratch(path)
      throw error
    } finally {
      memtable.release()
    }
  }

  async #commit(memtable: Memtable, { key, summary }: WrittenLayer): Promise<void> {
    const timeline = this.#timeline
    const { env, manifest } = timeline
    const entry = layerEntry(key, 0, summary)
    await this.#persist('committing the manifest', () =>
      manifest.update(current => ({
        ...current,
        durableLsn: memtable.endLsn,
        stopped: timeline.stoppedAt(memtable.endLsn),
        layers: [...current.layers, entry],
      })),
    )
    // In one turn: the layer is in the map, the memtable is not in the list any more.
    timeline.layerAdded()
    this.#memtables.splice(this.#memtables.indexOf(memtable), 1)
    memtable.markFlushed()
    // The arenas may still be ours, with nothing in them.
    if (env.arenas.awaited && !env.arenas.hasRoom) env.arenasStarved()
    timeline.times.forget(memtable.endLsn)
    env.metrics.layerBytes.flush += summary.bytes
    timeline.log.debug(
      { lsnEnd: memtable.endLsn, redoBytes: memtable.bytes, layerBytes: summary.bytes, pages: summary.pages },
      'layer written',
    )
    timeline.madeDurable()
  }

  async #persist<T>(what: string, work: () => Promise<T>): Promise<T> {
    for (;;)
      try {
        return await work()
      } catch (error) {
        const known = toPalimpsestError(error)
        if (this.#isClosed || isFinal(known)) throw known
        this.#timeline.held(known.message)
        this.#timeline.log.warn({ err: known }, `${what} failed; trying again`)
        await delay(RETRY_MS)
      }
  }
}

/** Whoever tries again gets the same. What is merely `internal` may be a disk that somebody looks after. */
function isFinal(error: PalimpsestError): boolean {
  const { kind } = error
  return (
    kind === 'fenced' || kind === 'corrupt' || kind === 'invalid' || error instanceof ImpossibleManifestError
  )
}
