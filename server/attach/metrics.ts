/** What an attach agent tells about itself, across its sessions. Read when metrics are scraped. */
import type { Lsn } from '../../protocol/ids.ts'
import { type MetricsPart, NO_METRICS } from '../shared/metrics.ts'

/** The session that runs now. */
export interface SessionView {
  /** Everything before it has been read from the server's log and sent. */
  readonly sentLsn: Lsn
  /** Everything before it is durable at the safekeepers. */
  readonly flushedLsn: Lsn
  readonly redoBytes: number
  readonly chunks: number
  /** When it last saw the end of the server's log, by `performance.now()`. */
  readonly endSeenAtMs: number
  readonly importing: boolean
  readonly following: boolean
  readonly files: number
}

export interface AttachTotals {
  importedPages: number
  redoBytes: number
  overtaken: number
}

const MISSING = {
  connecting: 'it has no connection to the servers',
  importing: 'an import is under way',
  reading: 'it has not caught up with the log yet',
  following: undefined,
}

export class AttachMetrics {
  readonly totals: AttachTotals = { importedPages: 0, redoBytes: 0, overtaken: 0 }
  /** Connections to the servers that came as far as reading the log. */
  #sessions = 0
  #view: (() => SessionView) | undefined
  /** Of sessions that are over. */
  #chunksBefore = 0
  #redoBytesBefore = 0
  #lastLsns: { readonly sentLsn: Lsn; readonly flushedLsn: Lsn } | undefined
  /** When no session had seen the end of the log any more. */
  #endSeenAtMs = performance.now()

  constructor(part: MetricsPart = NO_METRICS, timeline = '') {
    const lsns = () => this.#view?.() ?? this.#lastLsns
    const each = (name: string, help: string, of: () => number | undefined): void =>
      part.sampledGauge(name, help, ['timeline'], put => {
        const value = of()
        if (value !== undefined) put(value, timeline)
      })
    each('read_lsn', "read from the server's log up to here", () => lsns()?.sentLsn)
    each('acknowledged_lsn', 'durable at the safekeepers up to here', () => lsns()?.flushedLsn)
    each('unacknowledged_bytes', 'redo sent and not yet durable', () => {
      const now = lsns()
      return now === undefined ? undefined : Math.max(0, now.sentLsn - now.flushedLsn)
    })
    each(
      'behind_seconds',
      "time since the agent last saw the end of the server's log",
      () => (performance.now() - (this.#view?.().endSeenAtMs ?? this.#endSeenAtMs)) / 1000,
    )
    each('captured_files', "files that are not InnoDB's and are kept", () => this.#view?.().files)
    part.sampledGauge('agent_info', 'always 1; what the agent does', ['timeline', 'state'], put =>
      put(1, timeline, this.state),
    )
    const counted = (name: string, help: string, of: () => number): void =>
      part.sampledCounter(name, help, ['timeline'], put => put(of(), timeline))
    counted(
      'sent_bytes_total',
      'redo sent to the safekeepers',
      () => this.#redoBytesBefore + (this.#view?.().redoBytes ?? 0),
    )
    counted(
      'sent_chunks_total',
      'pieces in which it was sent',
      () => this.#chunksBefore + (this.#view?.().chunks ?? 0),
    )
    counted(
      'opened_sessions_total',
      'times the agent connected; all but the first after an error',
      () => this.#sessions,
    )
    counted(
      'overtaken_gaps_total',
      'times the server overwrote redo that was not read yet',
      () => this.totals.overtaken,
    )
    counted('imported_pages_total', 'pages copied from data files', () => this.totals.importedPages)
  }

  get state(): keyof typeof MISSING {
    const now = this.#view?.()
    if (now === undefined) return 'connecting'
    if (now.importing) return 'importing'
    return now.following ? 'following' : 'reading'
  }

  /** For readiness: what is missing. */
  get missing(): string | undefined {
    return MISSING[this.state]
  }

  begin(view: () => SessionView): void {
    this.#sessions++
    this.#view = view
  }

  /** Takes over what the session had counted. Without one, it does nothing. */
  end(): void {
    const last = this.#view?.()
    if (last === undefined) return
    this.#chunksBefore += last.chunks
    this.#redoBytesBefore += last.redoBytes
    this.#endSeenAtMs = last.endSeenAtMs
    this.#lastLsns = last
    this.#view = undefined
  }
}
