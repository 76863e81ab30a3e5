/** Certificates and tokens that run out, as `palimpsest status` warns of them: while there is time to renew them calmly. */
import { formatRoughly } from '../shared/format.ts'

const WARN_MS = 14 * 24 * 3600_000

export interface Credential {
  /** Such as `certificate of`. */
  readonly what: string
  /** Whose, such as `safekeeper sk1`. */
  readonly whose: string
  /** Where known: what is short-lived on purpose is told of in its last third. */
  readonly beganAtMs?: number | undefined
  readonly expiresAtMs: number
  /** What to do about it. */
  readonly renew: string
}

/** A line for all that expire at the same moment: one certificate may serve several. */
export function expiryComplaints(credentials: readonly Credential[], nowMs = Date.now()): string[] {
  const soon = credentials.filter(
    ({ beganAtMs = Number.NEGATIVE_INFINITY, expiresAtMs }) =>
      expiresAtMs - nowMs < Math.min(WARN_MS, (expiresAtMs - beganAtMs) / 3),
  )
  const groups = Map.groupBy(soon, ({ what, expiresAtMs, renew }) => `${what} ${expiresAtMs} ${renew}`)
  return [...groups.values()]
    .sort((a, b) => a[0]!.expiresAtMs - b[0]!.expiresAtMs)
    .map(group => {
      const { what, expiresAtMs, renew } = group[0]!
      const left = expiresAtMs - nowMs
      const when = `${left <= 0 ? 'expired' : `expires in ${formatRoughly(left)}`}, ${new Date(expiresAtMs).toISOString()}`
      return `${what} ${group.map(({ whose }) => whose).join(', ')}: ${when}; ${renew}`
    })
}
