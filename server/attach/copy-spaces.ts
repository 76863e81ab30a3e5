/**
 * Copies all tablespaces of a datadir, whatever names they take meanwhile.
 *
 * A scan takes a moment and the copying takes hours. A table that is renamed in between is not where it was seen, or
 * another one stands in its place (RENAME TABLE a TO old, new TO a, as online schema changes do it), or the scan met it
 * under neither name. So a file is copied only if its first page bears the id that was seen, and when all are done the
 * datadir is looked at again, until each tablespace that was ever seen, or that the redo says was renamed, has been
 * copied, was made by redo that is followed, or is deleted.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Lsn } from '../../protocol/ids.ts'
import { type DatadirScan, type SpaceFile, scanDatadir } from '../datadir/scan.ts'
import { retryError } from '../shared/errors.ts'
import type { PageImport } from './page-import.ts'
import type { SpaceTracker } from './space-tracker.ts'

const ROUNDS_MAX = 100
const ROUND_MS = 50

export interface CopySpacesOptions {
  readonly datadir: string
  readonly live: boolean
  readonly session: Pick<PageImport, 'copy'>
  /** Redo beyond this LSN is followed. */
  readonly startLsn: Lsn
  readonly tracker: SpaceTracker
  /** Waits until the redo has been read up to its present end. */
  readonly caughtUp: () => Promise<unknown>
  readonly signal: AbortSignal
}

/**
 * @param scan the first look, after `tracker.beginScans`
 * @returns ids of the tablespaces that were seen
 * @throws PalimpsestError
 */
export async function copySpaces(scan: DatadirScan, options: CopySpacesOptions): Promise<number[]> {
  const { datadir, live, session, startLsn, tracker, signal } = options
  const seen = new Map<number, SpaceFile>()
  const copied = new Set<number>()
  const isDone = (space: number): boolean =>
    copied.has(space) || !tracker.knows(space) || tracker.wasCreatedAfter(space, startLsn)
  let spaces = scan.spaces
  for (let round = 1; ; round++) {
    tracker.know(spaces.map(space => space.space))
    for (const space of spaces) seen.set(space.space, space)
    for (const space of spaces)
      if (!copied.has(space.space) && (await session.copy(space))) copied.add(space.space)
    if (!live) return [...seen.keys()]
    const again = await scanDatadir(datadir, { live, signal })
    // Whatever was done to the files before that look stands in the redo.
    await options.caughtUp()
    signal.throwIfAborted()
    spaces = again.spaces.filter(
      ({ space }) => !copied.has(space) && !tracker.wasCreatedAfter(space, startLsn),
    )
    const missing = [...new Set([...seen.keys(), ...tracker.renamedAfter(startLsn)])].filter(
      // Undo tablespaces have no records about their files.
      space => !isDone(space) && seen.get(space)?.kind !== 'undo',
    )
    if (spaces.length === 0 && missing.length === 0) return [...seen.keys()]
    if (round >= ROUNDS_MAX) {
      const space = missing[0] ?? spaces[0]!.space
      const name = tracker.nameOf(space) ?? seen.get(space)?.name ?? 'no name known'
      throw retryError(
        `${datadir}: tablespace ${space} (${name}) exists by the redo log, but no look at the datadir finds its file`,
      )
    }
    if (spaces.length === 0) await sleep(ROUND_MS)
  }
}
