/**
 * Metrics: what a process counts about itself, for Prometheus. There is no global registry. A process that has an admin
 * port makes one `Metrics` and gives each of its components a *part* of it; without one they get `NO_METRICS`, which
 * does nothing, so a component never asks whether somebody listens.
 *
 * How a component takes part, in a few lines:
 *
 *     constructor(options: { …; metrics?: MetricsPart }) {
 *       const part = options.metrics ?? NO_METRICS          // its command passes watch.part('safekeeper'), see serve.ts
 *       // What happens: counted when it happens.
 *       this.#syncSeconds = part.histogram('sync_seconds', 'fdatasync of the log', DISK_SECONDS)
 *       this.#elections = part.counter('elections_total', 'elections this node began')
 *       // What is: read when somebody asks, and nothing in between. A value is put once per combination of labels.
 *       part.sampledGauge('committed_lsn', 'end of what a quorum has', ['timeline'], put => {
 *         for (const timeline of firstFew(this.timelines)) put(timeline.committedLsn, timeline.name)
 *       })
 *     }
 *     … this.#syncSeconds.observe(seconds); this.#elections.add(1)
 *
 * Hot paths count in plain fields of their own and are sampled: a counter of prom-client costs some 100 ns.
 *
 * Names are `palimpsest_<part>_<what>_<unit>`, checked here, in one place: the unit is the last word (seconds, bytes, lsn,
 * or the plural of what is counted); counters, and only they, end in `_total`. docs/operations.md has the table of all
 * of them, and a test holds the two together: a new metric needs its row there. Process metrics (`process_*`, `nodejs_*`) have prom-client's names.
 *
 * How many series there are is bounded twice. What is told per timeline is told of the first `TIMELINES_MAX` of them, in the
 * order in which the process came to know them, so that a series does not come and go; sums and maxima over all
 * timelines stand beside it. And a metric has no more than `SERIES_MAX` combinations of labels: further ones are dropped
 * and counted in `palimpsest_process_dropped_series_total`.
 */
import type { Counter, Gauge, Registry } from 'prom-client'

export const TIMELINES_MAX = 200
export const SERIES_MAX = 2000

/** Buckets: what is answered from memory, what waits for a disk or a network, what runs in the background. Seconds. */
export const MEMORY_SECONDS = [
  0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5,
]
export const DISK_SECONDS = [
  0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5,
]
export const TASK_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120]

const UNITS = new Set([
  'seconds',
  'bytes',
  'lsn',
  'ratio',
  'term',
  'info',
  'connections',
  'requests',
  'operations',
  'timelines',
  'sessions',
  'pages',
  'layers',
  'tasks',
  'threads',
  'files',
  'chunks',
  'entries',
  'elections',
  'members',
  'segments',
  'gaps',
  'series',
  'nodes',
  'index',
  'snapshots',
  'appends',
  'syncs',
  'votes',
  'messages',
  'hits',
  'fetches',
  'evictions',
  'errors',
])
const NAME = /^[a-z][a-z0-9]*(_[a-z0-9]+)*$/

export interface CounterMetric {
  add(by: number, ...labels: string[]): void
}

export interface HistogramMetric {
  observe(value: number, ...labels: string[]): void
}

/** Called at each scrape: says every value, once per combination of labels. */
export type Sampler = (put: (value: number, ...labels: string[]) => void) => void

/** One component's metrics. `name` is `<what>_<unit>`; label values come in the order of the label names. */
export interface MetricsPart {
  counter(name: string, help: string, labels?: readonly string[]): CounterMetric
  histogram(
    name: string,
    help: string,
    buckets: readonly number[],
    labels?: readonly string[],
  ): HistogramMetric
  /** A count that the component keeps itself and that only grows. */
  sampledCounter(name: string, help: string, labels: readonly string[], sample: Sampler): void
  sampledGauge(name: string, help: string, labels: readonly string[], sample: Sampler): void
}

const ignored = { add: () => {}, observe: () => {} }

/** For what has several parts: `Metrics` is one. */
export interface MetricsSource {
  part(name: string): MetricsPart
}

export const NO_METRICS: MetricsPart = {
  counter: () => ignored,
  histogram: () => ignored,
  sampledCounter: () => {},
  sampledGauge: () => {},
}

export interface MetricDescription {
  readonly name: string
  readonly kind: 'counter' | 'gauge' | 'histogram'
  readonly labels: readonly string[]
  readonly help: string
}

type PromClient = typeof import('prom-client')

export class Metrics implements MetricsSource {
  readonly #prom: PromClient
  readonly #registry: Registry
  readonly #descriptions: MetricDescription[] = []
  readonly #dropped: CounterMetric
  #rendering: Promise<string> | undefined

  /** prom-client is loaded only here: most commands have no use for it. */
  static async create(): Promise<Metrics> {
    const loaded = await import('prom-client')
    return new Metrics(loaded.default ?? loaded)
  }

  private constructor(prom: PromClient) {
    this.#prom = prom
    this.#registry = new prom.Registry()
    const counter = new prom.Counter({
      ...this.#named('process', 'dropped_series_total', 'counter', [], 'values dropped: too many label sets'),
      registers: [this.#registry],
    })
    this.#dropped = { add: by => counter.inc(by) }
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  /** Of all that was registered, in that order; prom-client's own process metrics are not among them. */
  get descriptions(): readonly MetricDescription[] {
    return this.#descriptions
  }

  /** Adds CPU, memory, open files, event loop lag and garbage collection of this process. Once. */
  collectProcess(): void {
    this.#prom.collectDefaultMetrics({ register: this.#registry })
  }

  /** The Prometheus text. Several who ask at once get the same one. */
  text(): Promise<string> {
    this.#rendering ??= this.#registry.metrics().finally(() => {
      this.#rendering = undefined
    })
    return this.#rendering
  }

  part(part: string): MetricsPart {
    const registers = [this.#registry]
    const prom = this.#prom
    return {
      counter: (name, help, labels = []) => {
        const metric = new prom.Counter({ ...this.#named(part, name, 'counter', labels, help), registers })
        const child = this.#bounded(values => metric.labels(...values))
        return labels.length === 0
          ? { add: by => metric.inc(by) }
          : { add: (by, ...values) => child(values)?.inc(by) }
      },
      histogram: (name, help, buckets, labels = []) => {
        const metric = new prom.Histogram({
          ...this.#named(part, name, 'histogram', labels, help),
          buckets: [...buckets],
          registers,
        })
        const child = this.#bounded(values => metric.labels(...values))
        return labels.length === 0
          ? { observe: value => metric.observe(value) }
          : { observe: (value, ...values) => child(values)?.observe(value) }
      },
      sampledCounter: (name, help, labels, sample) => {
        const dropped = this.#dropped
        new prom.Counter({
          ...this.#named(part, name, 'counter', labels, help),
          registers,
          collect(this: Counter) {
            this.reset()
            sampleInto(sample, dropped, (value, values) => this.labels(...values).inc(value))
          },
        })
      },
      sampledGauge: (name, help, labels, sample) => {
        const dropped = this.#dropped
        new prom.Gauge({
          ...this.#named(part, name, 'gauge', labels, help),
          registers,
          collect(this: Gauge) {
            this.reset()
            // An unlabelled gauge that was not put is left out, not zero.
            if (labels.length === 0) this.remove()
            sampleInto(sample, dropped, (value, values) => this.labels(...values).set(value))
          },
        })
      },
    }
  }

  #named(
    part: string,
    name: string,
    kind: MetricDescription['kind'],
    labels: readonly string[],
    help: string,
  ): { name: string; help: string; labelNames: string[] } {
    const full = metricName(part, name, kind)
    this.#descriptions.push({ name: full, kind, labels, help })
    return { name: full, help, labelNames: [...labels] }
  }

  /** Finds the series of a combination of labels, or makes it while there is room for a further one. */
  #bounded<T>(make: (values: readonly string[]) => T): (values: readonly string[]) => T | undefined {
    const series = new Map<string, T>()
    return values => {
      const key = values.length === 1 ? values[0]! : values.join('\0')
      const known = series.get(key)
      if (known !== undefined) return known
      if (series.size >= SERIES_MAX) {
        this.#dropped.add(1)
        return undefined
      }
      const made = make(values)
      series.set(key, made)
      return made
    }
  }
}

function sampleInto(
  sample: Sampler,
  dropped: CounterMetric,
  put: (value: number, labels: readonly string[]) => void,
): void {
  let series = 0
  sample((value, ...labels) => {
    if (series++ < SERIES_MAX) put(value, labels)
    else dropped.add(1)
  })
}

/** @throws Error where the name breaks the rules above: that is a mistake in the program */
export function metricName(part: string, name: string, kind: MetricDescription['kind']): string {
  const words = name.split('_')
  const total = words.at(-1) === 'total'
  const unit = total ? words.at(-2) : words.at(-1)
  if (!NAME.test(part) || !NAME.test(name) || total !== (kind === 'counter') || !UNITS.has(unit ?? ''))
    throw new Error(
      `metric name ${part}_${name}: a ${kind} is named <part>_<what>_<unit>${kind === 'counter' ? '_total' : ''}, with a unit that metrics.ts knows`,
    )
  return `palimpsest_${part}_${name}`
}

/** The timelines of which single values are told: see above. */
export function* firstFew<T>(timelines: Iterable<T>): Iterable<T> {
  let count = 0
  for (const timeline of timelines) {
    if (count++ >= TIMELINES_MAX) return
    yield timeline
  }
}
