/**
 * A typed task table over Piscina.
 *
 * A worker file exports its tasks by name; `WorkerPool<typeof import('./worker.ts')>` then knows what each takes and
 * gives. Large data never travels in a task: it lies in shared memory that all workers got once, as `workerData`.
 * The queue is bounded: what does not fit is refused with a `retry` error, and callers with bulk work bound themselves
 * far below that.
 *
 * An error thrown in a worker would lose its class and fields on the way (structured clone keeps only the message), so
 * tasks are exported through `task`, which turns it into a plain value, and `run` makes a `PalimpsestError` of it again.
 */
import { availableParallelism } from 'node:os'
import { Piscina } from 'piscina'
import type { Lsn } from '../../protocol/ids.ts'
import { type ErrorKind, PalimpsestError, retryError } from './errors.ts'
import { type HistogramMetric, type MetricsPart, TASK_SECONDS } from './metrics.ts'

type PiscinaLoadBalancer = NonNullable<NonNullable<ConstructorParameters<typeof Piscina>[0]>['loadBalancer']>
type PiscinaWorker = NonNullable<ReturnType<PiscinaLoadBalancer>>

interface TaskFailure {
  readonly taskFailed: true
  readonly kind: ErrorKind
  readonly message: string
  readonly lsn: Lsn | undefined
  readonly stack: string | undefined
}

/** The result of a task, as it travels. */
export type TaskOutcome<O> = { readonly taskFailed: false; readonly value: O } | TaskFailure

// biome-ignore lint/suspicious/noExplicitAny: the table's types come from the worker file.
type TaskFunction = (input: any) => TaskOutcome<any> | Promise<TaskOutcome<any>>
type TaskInput<F> = F extends (input: infer I) => unknown ? I : never
type TaskOutput<F> = F extends (input: never) => infer R
  ? Awaited<R> extends TaskOutcome<infer O>
    ? O
    : never
  : never
type TaskName<T> = { [K in keyof T]: T[K] extends TaskFunction ? K : never }[keyof T] & string

/** Wraps a function as a task: what it throws becomes a value that keeps the error's kind and LSN. */
export function task<I, O>(run: (input: I) => O): (input: I) => TaskOutcome<O> {
  return input => {
    try {
      return { taskFailed: false, value: run(input) }
    } catch (error) {
      const known = error instanceof PalimpsestError
      const lsn = (error as { lsn?: Lsn }).lsn
      const corrupt = error instanceof Error && error.name.startsWith('Corrupt')
      return {
        taskFailed: true,
        kind: known ? error.kind : corrupt ? 'corrupt' : 'internal',
        message: error instanceof Error ? error.message : String(error),
        lsn,
        stack: error instanceof Error ? error.stack : undefined,
      }
    }
  }
}

export interface WorkerPoolOptions {
  /** Module URL of the worker file. */
  readonly filename: string
  /** Number of threads; default the number of cores. */
  readonly threads?: number
  /** Tasks that may wait; further ones are refused. */
  readonly queueMax?: number
  /**
   * Tasks that go to the first few threads as long as those have room. Where one thread could do them all, it is a loss that
   * each of them compiles their code for itself; and the others are free for those that somebody waits for.
   */
  readonly gathered?: { readonly tasks: readonly string[]; readonly threads: number }
  /** Tasks handed to a thread at once: 2 hides the round trip behind work, 1 keeps long tasks from piling up. */
  readonly concurrentTasksPerWorker?: number
  readonly workerData?: unknown
  /** Upper bound of a worker's JavaScript heap. */
  readonly heapMbMax?: number
  /** For metrics. */
  readonly name?: string
  readonly metrics?: WorkerPoolMetrics
}

/** The least busy of the first threads for the tasks that are gathered there, the least busy of all, last ones first, for others. */
function gathering(
  gathered: NonNullable<WorkerPoolOptions['gathered']>,
  usageMax: number,
): PiscinaLoadBalancer {
  return (task, workers) => {
    const isGathered = gathered.tasks.includes(task.name)
    const inOrder = [...workers].sort((a, b) => a.id - b.id)
    const first = isGathered ? leastBusy(inOrder.slice(0, gathered.threads), usageMax) : null
    return first ?? leastBusy(inOrder.reverse(), usageMax)
  }
}

function leastBusy(workers: readonly PiscinaWorker[], usageMax: number): PiscinaWorker | null {
  let found: PiscinaWorker | null = null
  for (const worker of workers) if (worker.currentUsage < (found?.currentUsage ?? usageMax)) found = worker
  return found
}

/** What the pools of a process tell; each adds itself. */
export class WorkerPoolMetrics {
  readonly #pools: WorkerPool<unknown>[] = []
  readonly taskSeconds: HistogramMetric

  constructor(part: MetricsPart) {
    this.taskSeconds = part.histogram(
      'task_seconds',
      'tasks of worker threads, with their time in the queue; the outcome is ok or the kind of an error',
      TASK_SECONDS,
      ['pool', 'task', 'outcome'],
    )
    const each = (name: string, help: string, of: (pool: WorkerPool<unknown>) => number): void =>
      part.sampledGauge(name, help, ['pool'], put => {
        for (const pool of this.#pools) put(of(pool), pool.name)
      })
    each('queued_tasks', 'tasks that wait for a thread', pool => pool.queued)
    each('running_tasks', 'tasks handed to threads and not done', pool => pool.running)
    each('worker_threads', 'threads of the pool', pool => pool.threads)
  }

  add(pool: WorkerPool<unknown>): void {
    this.#pools.push(pool)
  }
}

export class WorkerPool<T> {
  readonly #piscina: Piscina
  readonly threads: number
  readonly name: string
  readonly #metrics: WorkerPoolMetrics | undefined
  #pending = 0

  constructor(options: WorkerPoolOptions) {
    this.name = options.name ?? 'pool'
    this.#metrics = options.metrics
    options.metrics?.add(this)
    this.threads = options.threads ?? availableParallelism()
    const concurrentTasksPerWorker = options.concurrentTasksPerWorker ?? 2
    this.#piscina = new Piscina({
      filename: options.filename,
      minThreads: this.threads,
      maxThreads: this.threads,
      atomics: 'async',
      concurrentTasksPerWorker,
      ...(options.gathered === undefined
        ? {}
        : { loadBalancer: gathering(options.gathered, concurrentTasksPerWorker) }),
      maxQueue: options.queueMax ?? 4096,
      workerData: options.workerData,
      recordTiming: false,
      ...(options.heapMbMax === undefined
        ? {}
        : { resourceLimits: { maxOldGenerationSizeMb: options.heapMbMax, maxYoungGenerationSizeMb: 16 } }),
    })
  }

  get queued(): number {
    return this.#piscina.queueSize
  }

  get running(): number {
    return Math.max(0, this.#pending - this.queued)
  }

  async run<N extends TaskName<T>>(
    name: N,
    input: TaskInput<T[N]>,
    transferList?: ArrayBuffer[],
  ): Promise<TaskOutput<T[N]>> {
    let outcome: TaskOutcome<TaskOutput<T[N]>>
    const since = performance.now()
    const ended = (how: string): void => {
      this.#pending--
      this.#metrics?.taskSeconds.observe((performance.now() - since) / 1000, this.name, name, how)
    }
    this.#pending++
    try {
      outcome = await this.#piscina.run(input, transferList === undefined ? { name } : { name, transferList })
    } catch (error) {
      ended('retry')
      const message = error instanceof Error ? error.message : String(error)
      if (/queue/i.test(message))
        throw retryError(`the worker pool has ${this.queued} tasks waiting; try again`, error)
      // What a task throws comes back as a value: this is a thread that died (out of memory, say). A new one takes its place.
      throw retryError(`worker task ${name} did not finish: ${message}`, error)
    }
    ended(outcome.taskFailed ? outcome.kind : 'ok')
    if (outcome.taskFailed) {
      const error = new PalimpsestError(outcome.kind, outcome.message, { lsn: outcome.lsn })
      if (outcome.kind === 'internal' && outcome.stack !== undefined) error.stack = outcome.stack
      throw error
    }
    return outcome.value
  }

  async close(): Promise<void> {
    await this.#piscina.destroy()
  }
}
