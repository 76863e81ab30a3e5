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
 * A process with several of a kind gives each a part with a fixed label: `metrics.part('safekeeper', { node: 'a' })`.
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
import type { Counter, Gauge, Histogram, Registry } from 'prom-client'

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
  'passes',
  'found',
  'repaired',
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
  /** @param fixed labels of all metrics of this part, where a process has several of its kind: `{ node: 'a' }` */
  part(name: string, fixed?: Readonly<Record<string, string>>): MetricsPart
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

/** One metric, which several parts with different fixed labels may share. */
interface Family extends MetricDescription {
  readonly metric: Counter | Gauge | Histogram
  /** Of sampled ones. */
  readonly samplers: Sampler[]
  /** Of others: what is counted by a combination of labels. */
  readonly series: Map<string, { inc(by: number): void } | { observe(value: number): void }>
}

export class Metrics implements MetricsSource {
  readonly #prom: PromClient
  readonly #registry: Registry
  readonly #families = new Map<string, Family>()
  readonly #dropped: Counter
  #rendering: Promise<string> | undefined

  /** prom-client is loaded only here: most commands have no use for it. */
  static async create(): Promise<Metrics> {
    const loaded = await import('prom-client')
    return new Metrics(loaded.default ?? loaded)
  }

  private constructor(prom: PromClient) {
    this.#prom = prom
    this.#registry = new prom.Registry()
    const family = this.#family('process', 'counter', 'dropped_series_total', 'too many label sets', [], {})
    this.#dropped = family.metric as Counter
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  /** Of all that was registered, in that order; prom-client's own process metrics are not among them. */
  get descriptions(): readonly MetricDescription[] {
    return [...this.#families.values()]
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

  part(part: string, fixed: Readonly<Record<string, string>> = {}): MetricsPart {
    const values = Object.values(fixed)
    const sampled = (kind: 'counter' | 'gauge'): MetricsPart['sampledGauge'] => {
      return (name, help, labels, sample) => {
        const { samplers } = this.#family(part, kind, name, help, labels, fixed)
        samplers.push(put => sample((value, ...given) => put(value, ...given, ...values)))
      }
    }
    return {
      counter: (name, help, labels = []) => {
        const family = this.#family(part, 'counter', name, help, labels, fixed)
        const metric = family.metric as Counter
        if (family.labels.length === 0) return { add: by => metric.inc(by) }
        const find = this.#finder(family, given => metric.labels(...given, ...values), values)
        return { add: (by, ...given) => find(given)?.inc(by) }
      },
      histogram: (name, help, buckets, labels = []) => {
        const family = this.#family(part, 'histogram', name, help, labels, fixed, buckets)
        const metric = family.metric as Histogram
        if (family.labels.length === 0) return { observe: value => metric.observe(value) }
        const find = this.#finder(family, given => metric.labels(...given, ...values), values)
        return { observe: (value, ...given) => find(given)?.observe(value) }
      },
      sampledCounter: sampled('counter'),
      sampledGauge: sampled('gauge'),
    }
  }

  /** The metric of that name; made, unless another part with other values of the same fixed labels has made it. */
  #family(
    part: string,
    kind: MetricDescription['kind'],
    name: string,
    help: string,
    ownLabels: readonly string[],
    fixed: Readonly<Record<string, string>>,
    buckets: readonly number[] = [],
  ): Family {
    const full = metricName(part, name, kind)
    const labels = [...ownLabels, ...Object.keys(fixed)]
    const known = this.#families.get(full)
    if (known !== undefined) {
      if (Object.keys(fixed).length === 0 || known.kind !== kind || known.labels.join() !== labels.join())
        throw new Error(`metric ${full} is there already`)
      return known
    }
    const samplers: Sampler[] = []
    const options = { name: full, help, labelNames: labels, registers: [this.#registry] }
    const collect = (metric: Counter | Gauge, put: (value: number, values: string[]) => void): void => {
      if (samplers.length === 0) return
      metric.reset()
      // One without labels that is not put is left out, not zero.
      if (labels.length === 0) metric.remove()
      let series = 0
      for (const sample of samplers)
        sample((value, ...values) => {
          if (series++ < SERIES_MAX) put(value, values)
          else this.#dropped.inc()
        })
    }
    const prom = this.#prom
    let metric: Family['metric']
    if (kind === 'histogram') metric = new prom.Histogram({ ...options, buckets: [...buckets] })
    else if (kind === 'counter')
      metric = new prom.Counter({
        ...options,
        collect(this: Counter) {
          collect(this, (value, values) => this.labels(...values).inc(value))
        },
      })
    else
      metric = new prom.Gauge({
        ...options,
        collect(this: Gauge) {
          collect(this, (value, values) => this.labels(...values).set(value))
        },
      })
    const family: Family = { name: full, kind, labels, help, metric, samplers, series: new Map() }
    this.#families.set(full, family)
    return family
  }

  /** Finds the series of a combination of labels, or makes it while there is room for a further one. */
  #finder<T extends { inc(by: number): void } | { observe(value: number): void }>(
    family: Family,
    make: (given: readonly string[]) => T,
    fixed: readonly string[],
  ): (given: readonly string[]) => T | undefined {
    const series = family.series as Map<string, T>
    const suffix = fixed.length === 0 ? '' : `\0${fixed.join('\0')}`
    return given => {
      const key = (given.length === 1 ? given[0]! : given.join('\0')) + suffix
      const known = series.get(key)
      if (known !== undefined) return known
      if (series.size >= SERIES_MAX) {
        this.#dropped.inc()
        return undefined
      }
      const made = make(given)
      series.set(key, made)
      return made
    }
  }
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
