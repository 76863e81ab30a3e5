// The benchmarks by name, for `palimpsest bench NAME`.
import type { Benchmark } from './harness.ts'

/** Each is loaded only when it is asked for: they need packages that a production install leaves out. */
export const benchmarks: Readonly<Record<string, () => Promise<Benchmark>>> = {
  read: async () => (await import('./read.ts')).benchmark,
  recovery: async () => (await import('./recovery.ts')).benchmark,
  ingest: async () => (await import('./ingest.ts')).benchmark,
  append: async () => (await import('./append.ts')).benchmark,
  timelines: async () => (await import('./timelines.ts')).benchmark,
  tls: async () => (await import('./tls.ts')).benchmark,
  'net-ceiling': async () => (await import('./net-ceiling.ts')).benchmark,
  'http-json': async () => (await import('./http-json-server.ts')).benchmark,
}
