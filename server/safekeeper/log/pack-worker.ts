/** The thread that makes packs: reading, checking, compressing, writing and syncing happen here, beside the event loop. */
import { setPriority } from 'node:os'
import { PalimpsestError } from '../../shared/errors.ts'
import { nodeDisk } from '../../shared/node-seams.ts'
import type { TaskOutcome } from '../../shared/worker-pool.ts'
import { type PackJob, type PackResult, runPackJob } from './packer.ts'

/** Of the scheduler: gets a tenth of the time of a thread that it competes with. */
const NICENESS = 10

// Linux takes it for the calling thread; elsewhere it would be the whole process.
if (process.platform === 'linux')
  try {
    setPriority(0, NICENESS)
  } catch {
    // Then it competes like any other.
  }

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
