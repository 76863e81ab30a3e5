/** The thread that makes packs: reading, checking, compressing, writing and syncing happen here, beside the event loop. */
import { PalimpsestError } from '../../shared/errors.ts'
import { nodeDisk } from '../../shared/node-seams.ts'
import type { TaskOutcome } from '../../shared/worker-pool.ts'
import { type PackJob, type PackResult, runPackJob } from './packer.ts'

export async function pack(job: PackJob): Promise<TaskOutcome<PackResult>> {
  try {
    return { taskFailed: false, value: await runPackJob(nodeDisk, job) }
  } catch (error) {
    const known = error instanceof PalimpsestError
    return {
      taskFailed: true,
      kind: known ? error.kind : 'internal',
      message: error instanceof Error ? error.message : String(error),
      lsn: known ? error.lsn : undefined,
      stack: error instanceof Error ? error.stack : undefined,
    }
  }
}
