/** Runs pack jobs in a worker. */
import { WorkerPool } from '../../shared/worker-pool.ts'
import type { PackRunner } from './packer.ts'

export function workerPackRunner(): PackRunner {
  const pool = new WorkerPool<typeof import('./pack-worker.ts')>({
    filename: new URL('./pack-worker.ts', import.meta.url).href,
    threads: 1,
    queueMax: 4,
    concurrentTasksPerWorker: 1,
    name: 'log-packer',
  })
  return { run: job => pool.run('pack', job), close: () => pool.close() }
}
