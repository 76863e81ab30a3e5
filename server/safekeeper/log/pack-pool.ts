/** Runs pack jobs in a worker. */
import { retryError } from '../../shared/errors.ts'
import { WorkerPool } from '../../shared/worker-pool.ts'
import type { PackRunner } from './packer.ts'

/** The thread is started with the first job. */
export function workerPackRunner(): PackRunner {
  let pool: WorkerPool<typeof import('./pack-worker.ts')> | undefined
  let closed = false
  return {
    run: async job => {
      if (closed) throw retryError('the log is being closed')
      pool ??= new WorkerPool({
        filename: new URL('./pack-worker.ts', import.meta.url).href,
        threads: 1,
        queueMax: 4,
        concurrentTasksPerWorker: 1,
        name: 'log-packer',
      })
      return pool.run('pack', job)
    },
    close: async () => {
      closed = true
      await pool?.close()
    },
  }
}
