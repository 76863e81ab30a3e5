/** A safekeeper as a part that `palimpsest safekeeper` and `palimpsest dev` put on their listener. */
import { lockDirectory } from '../shared/dir-lock.ts'
import { retryError } from '../shared/errors.ts'
import type { Listener } from '../shared/listener.ts'
import type { Log } from '../shared/log.ts'
import { nodeClock, nodeDisk } from '../shared/node-seams.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { SEGMENT_BYTES_DEFAULT } from './segment-file.ts'
import { TimelineStore } from './timelines.ts'
import { walService } from './wal-service.ts'

export interface SafekeeperOptions {
  /** Made if it is not there; belongs to this process alone. */
  readonly dataDir: string
  readonly listener: Listener
  readonly log: Log
  readonly disk?: Disk | undefined
  readonly clock?: Clock | undefined
  /** Of new segments. Existing ones keep theirs. */
  readonly segmentBytes?: number | undefined
  /** A sync or write of the log failed: nothing this process says about the disk can be trusted. Ends the process. */
  readonly onFatal?: ((error: Error) => void) | undefined
}

export interface Safekeeper {
  readonly store: TimelineStore
  /** Makes all durable that was accepted, and ends readers with kind retry. Close the listener as well. */
  close(): Promise<void>
}

/** Recovers the logs below `dataDir` and adds the log's service to the listener. */
export async function startSafekeeper(options: SafekeeperOptions): Promise<Safekeeper> {
  const { dataDir, log } = options
  const unlock = lockDirectory(dataDir)
  try {
    const store = await TimelineStore.open({
      disk: options.disk ?? nodeDisk,
      clock: options.clock ?? nodeClock,
      dataDir,
      segmentBytes: options.segmentBytes ?? SEGMENT_BYTES_DEFAULT,
      log,
      onFatal:
        options.onFatal ??
        (error => {
          log.fatal({ err: error }, 'the log cannot be made durable: ending the process')
          process.exit(1)
        }),
    })
    options.listener.addService(walService(store))
    return {
      store,
      async close() {
        await store.close(retryError('the safekeeper is shutting down'))
        unlock()
      },
    }
  } catch (error) {
    unlock()
    throw error
  }
}
