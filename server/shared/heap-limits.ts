/** When V8 collects garbage in a process that passes on megabytes of redo or pages. */
import { setFlagsFromString } from 'node:v8'

/**
 * Has V8 count the memory of buffers together with that of objects, against the limit by which its heap may grow. Otherwise it
 * collects all garbage whenever 64 MiB of buffers were made since the last time, however many of them are in use and however
 * little there is to gain: under a stream of large appends, 10 to 40 % of the processor's time and pauses of 100 ms and more.
 * Costs up to 100 MB of memory. Call it before the process serves anybody.
 */
export function countBuffersInHeapLimit(): void {
  setFlagsFromString('--external-memory-accounted-in-global-limit')
}
