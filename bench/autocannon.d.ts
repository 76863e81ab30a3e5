// The little of autocannon that the benchmarks use; the package brings no types.
declare module 'autocannon' {
  type Options = {
    url: string
    method: string
    headers: Record<string, string>
    requests: { body: string }[]
    connections: number
    /** Seconds. */
    duration: number
  }
  type Result = {
    errors: number
    non2xx: number
    '2xx': number
    /** Seconds. */
    duration: number
    /** Milliseconds. */
    latency: { p50: number; p99: number }
  }
  export default function autocannon(options: Options): Promise<Result>
}
