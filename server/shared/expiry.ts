/**
 * When certificates and tokens of this process expire: told in the log beforehand, once a day, and by a metric at any
 * time. A process may run for longer than its certificate was valid when it was loaded.
 */
import { X509Certificate } from 'node:crypto'
import type { Log } from './log.ts'
import { type MetricsPart, NO_METRICS } from './metrics.ts'

export interface Expiring {
  /** What it is, for logs and metrics. */
  readonly kind: 'certificate' | 'token'
  readonly file: string
  /** Milliseconds since 1970; undefined: not known. */
  readonly beganAtMs: number | undefined
  readonly expiresAtMs: number
}

const DAY_MS = 24 * 3600_000
const LOOK_MS = 3600_000
/** Renewal is due a week before, or when two thirds of a shorter life are over. */
const SOON_MS = 7 * DAY_MS

export function isSoon(
  { beganAtMs = Number.NEGATIVE_INFINITY, expiresAtMs }: Expiring,
  nowMs: number,
): boolean {
  return expiresAtMs - nowMs < Math.min(SOON_MS, (expiresAtMs - beganAtMs) / 3)
}

export function expiringCertificate(pem: Buffer, file: string): Expiring {
  const { validFromDate, validToDate } = new X509Certificate(pem)
  return {
    kind: 'certificate',
    file,
    beganAtMs: validFromDate.getTime(),
    expiresAtMs: validToDate.getTime(),
  }
}

/** What a signed token says of itself, unverified; undefined for an API key and for what never expires. */
export function expiringToken(token: string, file: string): Expiring | undefined {
  try {
    const payload = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8'))
    const { iat, exp } = payload as { iat?: unknown; exp?: unknown }
    if (typeof exp !== 'number') return undefined
    return {
      kind: 'token',
      file,
      beganAtMs: typeof iat === 'number' ? iat * 1000 : undefined,
      expiresAtMs: exp * 1000,
    }
  } catch {
    return undefined
  }
}

export class ExpiryWatch {
  private readonly sources: () => readonly Expiring[]
  private readonly log: Log
  private readonly timer: NodeJS.Timeout
  /** When each file was told of last. */
  private readonly toldMs = new Map<string, number>()

  /** @param sources what is in force now */
  constructor(sources: () => readonly Expiring[], log: Log, part: MetricsPart = NO_METRICS) {
    this.sources = sources
    this.log = log
    part.sampledGauge(
      'credential_left_seconds',
      'until the certificate or token in this file expires; negative: it has',
      ['kind', 'file'],
      put => {
        const nowMs = Date.now()
        for (const { kind, file, expiresAtMs } of sources()) put((expiresAtMs - nowMs) / 1000, kind, file)
      },
    )
    this.check(Date.now())
    this.timer = setInterval(() => this.check(Date.now()), LOOK_MS)
    this.timer.unref()
  }

  /** Tells of what expires soon, of each file once a day. */
  check(nowMs: number): void {
    for (const one of this.sources()) {
      const { kind, file, expiresAtMs } = one
      if (!isSoon(one, nowMs)) this.toldMs.delete(file)
      else if (nowMs - (this.toldMs.get(file) ?? Number.NEGATIVE_INFINITY) >= DAY_MS) {
        this.toldMs.set(file, nowMs)
        const about = { file, expires: new Date(expiresAtMs).toISOString() }
        if (expiresAtMs <= nowMs) this.log.error(about, `the ${kind} has expired; replace the file`)
        else this.log.warn(about, `the ${kind} expires soon; replace the file`)
      }
    }
  }

  close(): void {
    clearInterval(this.timer)
  }
}
