/** Numbers for people. */

/** Three digits and a unit, in powers of 1024: `1.50 KiB`, `40.0 MiB`, `300 GiB`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${Math.round(bytes)} B`
  let value = bytes
  for (const unit of ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']) {
    value /= 1024
    if (value < 1024 || unit === 'PiB')
      return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`
  }
  throw new Error('unreachable')
}

/** A moment in microseconds since 1970 as `2026-11-21T14:30:00.000Z`. */
export function formatTime(timeUs: number): string {
  return new Date(timeUs / 1000).toISOString()
}

/** The same to the second, where a column is narrow: `2026-11-21T14:30:00Z`. */
export function formatSecond(timeUs: number): string {
  return formatTime(timeUs).replace(/\.\d+Z$/, 'Z')
}

/** One number and one unit: `45 s`, `12 min`, `23 h`, `364 d`. */
export function formatRoughly(ms: number): string {
  const s = Math.max(0, ms) / 1000
  if (s < 60) return `${Math.floor(s)} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h`
  return `${Math.floor(s / 86_400)} d`
}

/** `3 s`, `1 min 15 s`, `2 h 1 min`; `?` for what is not finite. */
export function formatSeconds(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?'
  const s = Math.round(seconds)
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`
}
