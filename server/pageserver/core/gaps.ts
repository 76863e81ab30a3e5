/**
 * The LSNs of a timeline that cannot be read. Pure.
 *
 * The first gap is that before the end of the first import. Each further one begins where redo was lost, or where content
 * changed that the redo does not tell, and ends where the import that mended it did; `LSN_MAX` as long as it has not.
 */
import { LSN_MAX, type Lsn } from '../../../protocol/ids.ts'

/** LSNs with from < LSN < readableFrom cannot be read; of the first gap, all below `readableFrom`. */
export interface Gap {
  readonly from: Lsn
  readonly readableFrom: Lsn
  /** `unlogged`: content that came without redo (IMPORT TABLESPACE, other undo tablespaces). Without: redo that was lost. */
  readonly cause?: 'unlogged' | undefined
}

/** Whether pages are still to come, so that what is made of the redo alone may be wrong. */
export function awaitsImport(gaps: readonly Gap[]): boolean {
  return gaps.length === 0 || gaps.some(gap => gap.readableFrom === LSN_MAX)
}

/** The gap that the LSN lies in, and whether that is the first one. */
export function gapAt<G extends Gap>(gaps: readonly G[], lsn: Lsn): { gap: G; isFirst: boolean } | undefined {
  for (const [i, gap] of gaps.entries())
    if (lsn < gap.readableFrom && (i === 0 || lsn > gap.from)) return { gap, isFirst: i === 0 }
  return undefined
}

export interface EndedImport {
  /** Its pages are given out for any LSN from here on … */
  readonly startLsn: Lsn
  /** … and are right from here on: they were copied while they changed. */
  readonly readableFromLsn: Lsn
  /** Whether it is for this one that the gap was open. */
  mends(gapFrom: Lsn): boolean
}

/**
 * The gaps after an import that was not the first. What lay between its LSNs could perhaps be read before, and cannot be
 * any more: its pages may be newer.
 */
export function closeGaps<G extends Gap>(gaps: readonly G[], ended: EndedImport): (G | Gap)[] {
  const { startLsn, readableFromLsn: readableFrom } = ended
  const closed: (G | Gap)[] = gaps.flatMap((gap, i) => {
    if (gap.readableFrom !== LSN_MAX || !ended.mends(gap.from)) return [gap]
    // One that was opened for this import, and turned out to be none.
    if (i > 0 && gap.from === readableFrom) return []
    return [{ ...gap, readableFrom }]
  })
  if (readableFrom <= startLsn || closed.length === 0) return closed
  const from = (startLsn - 1) as Lsn
  // One that is still open may end anywhere.
  const covers = (gap: Gap, i: number): boolean =>
    gap.readableFrom >= readableFrom && gap.readableFrom !== LSN_MAX && (i === 0 || gap.from <= from)
  if (closed.some(covers)) return closed
  const widened = closed.findIndex((gap, i) => i > 0 && gap.readableFrom === readableFrom)
  if (widened >= 0) return closed.with(widened, { ...closed[widened]!, from })
  return [...closed, { from, readableFrom }]
}
