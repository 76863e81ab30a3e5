/** Certificates and tokens that run out, as `palimpsest status` warns of them: while there is time to renew them calmly. */
import { formatRoughly } from '../shared/format.ts'

const WARN_MS = 14 * 24 * 3600_000

export interface Credential {
  /** Such as `the certificate of safekeeper sk1`. */
  readonly what: string
  readonly expiresAtMs: number
  /** What to do about it. */
  readonly renew: string
}

/** A line for all that expire at the same moment: one certificate may serve several. */
export function expiryComplaints(credentials: readonly Credential[], nowMs = Date.now()): string[] {
  const soon = credentials.filter(({ expiresAtMs }) => expiresAtMs - nowMs < WARN_MS)
  const groups = Map.groupBy(soon, ({ expiresAtMs, renew }) => `${expiresAtMs} ${renew}`)
  return [...groups.values()]
    .sort((a, b) => a[0]!.expiresAtMs - b[0]!.expiresAtMs)
    .map(group => {
      const { expiresAtMs, renew } = group[0]!
      const left = expiresAtMs - nowMs
      const when = `${left <= 0 ? 'expired' : `expires in ${formatRoughly(left)}`}, ${new Date(expiresAtMs).toISOString()}`
      return `${group.map(({ what }) => what).join(', ')}: ${when}; ${renew}`
    })
}
