/** Tasks for the test of the worker pool. */
import { threadId } from 'node:worker_threads'
import type { Lsn } from '../../protocol/ids.ts'
import { corruptError } from '../../server/shared/errors.ts'
import { task } from '../../server/shared/worker-pool.ts'

export const double = task(({ value }: { value: number }): number => value * 2)

export const fail = task(({ kind }: { kind: 'corrupt' | 'surprise' }): void => {
  throw kind === 'corrupt' ? corruptError('as asked', 77 as Lsn) : new Error('as asked')
})

export const sleep = task(({ ms }: { ms: number }): void => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
})

export const die = task((_: object): void => {
  process.exit(1)
})

/** Keeps its thread busy for a while and tells which one it is. */
const whichThread = ({ ms }: { readonly ms: number }): number => {
  for (const until = performance.now() + ms; performance.now() < until; );
  return threadId
}

export const anyThread = task(whichThread)
export const gatheredThread = task(whichThread)
