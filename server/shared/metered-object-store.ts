/** An object store that counts what is asked of another one: operations by outcome, their time, bytes in and out. */
import { toPalimpsestError } from './errors.ts'
import { type CounterMetric, DISK_SECONDS, type HistogramMetric, type MetricsPart } from './metrics.ts'
import type { ObjectInfo, ObjectStore } from './object-store.ts'

export class MeteredObjectStore implements ObjectStore {
  readonly #store: ObjectStore
  readonly #seconds: HistogramMetric
  readonly #read: CounterMetric
  readonly #written: CounterMetric

  constructor(store: ObjectStore, part: MetricsPart) {
    this.#store = store
    this.#seconds = part.histogram(
      'operation_seconds',
      'operations of the object store; the outcome is ok, conflict (a put of what exists), absent, or the kind of an error',
      DISK_SECONDS,
      ['operation', 'outcome'],
    )
    this.#read = part.counter(
      'read_bytes_total',
      'bytes of objects read, but for layers in a local directory',
    )
    this.#written = part.counter(
      'written_bytes_total',
      'bytes of small objects put; layers are counted elsewhere',
    )
  }

  get description(): string {
    return this.#store.description
  }

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean> {
    const created = await this.#timed('put', () => this.#store.putIfAbsent(key, bytes), putOutcome)
    if (created) this.#written.add(bytes.length)
    return created
  }

  putFile(key: string, localPath: string): Promise<boolean> {
    return this.#timed('put_file', () => this.#store.putFile(key, localPath), putOutcome)
  }

  async getFile(key: string, localPath: string): Promise<number | undefined> {
    const bytes = await this.#timed('get_file', () => this.#store.getFile(key, localPath), getOutcome)
    if (bytes !== undefined) this.#read.add(bytes)
    return bytes
  }

  async get(key: string): Promise<Buffer | undefined> {
    const bytes = await this.#timed('get', () => this.#store.get(key), getOutcome)
    if (bytes !== undefined) this.#read.add(bytes.length)
    return bytes
  }

  async getRange(key: string, offset: number, length: number): Promise<Buffer | undefined> {
    const bytes = await this.#timed('get_range', () => this.#store.getRange(key, offset, length), getOutcome)
    if (bytes !== undefined) this.#read.add(bytes.length)
    return bytes
  }

  head(key: string): Promise<number | undefined> {
    return this.#timed('head', () => this.#store.head(key), getOutcome)
  }

  list(prefix: string): Promise<ObjectInfo[]> {
    return this.#timed(
      'list',
      () => this.#store.list(prefix),
      () => 'ok',
    )
  }

  delete(key: string): Promise<void> {
    return this.#timed(
      'delete',
      () => this.#store.delete(key),
      () => 'ok',
    )
  }

  localPath(key: string): string | undefined {
    return this.#store.localPath(key)
  }

  close(): void {
    this.#store.close()
  }

  async #timed<T>(operation: string, run: () => Promise<T>, outcome: (result: T) => string): Promise<T> {
    const since = performance.now()
    const told = (how: string): void =>
      this.#seconds.observe((performance.now() - since) / 1000, operation, how)
    try {
      const result = await run()
      told(outcome(result))
      return result
    } catch (error) {
      told(toPalimpsestError(error).kind)
      throw error
    }
  }
}

const putOutcome = (created: boolean): string => (created ? 'ok' : 'conflict')
const getOutcome = (found: unknown): string => (found === undefined ? 'absent' : 'ok')
