/** Whether a timeline can be read at an LSN, and what to say where it cannot. */
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { invalidError, retryError } from '../shared/errors.ts'
import { type Gap, gapAt } from './core/gaps.ts'

export interface ReadPosition {
  /** Of the timeline, for messages. */
  readonly name: string
  readonly gaps: readonly Gap[]
  /** What was asked for; 0: the newest. */
  readonly asked: Lsn
  /** Where that is answered: not beyond `ingestedLsn`. */
  readonly lsn: Lsn
  readonly ingestedLsn: Lsn
}

/** @throws PalimpsestError: `retry` where it can be read later, `invalid` where never */
export function checkReadable(position: ReadPosition): void {
  const { name, gaps, asked, lsn, ingestedLsn } = position
  if (gaps.length === 0)
    throw retryError(`timeline ${name} cannot be read yet: no import of its pages has ended`)
  const found = gapAt(gaps, lsn)
  if (found === undefined) return
  const { gap, isFirst } = found
  const isUnlogged = gap.cause === 'unlogged'
  const content =
    'tablespaces got content that is not in the redo (IMPORT TABLESPACE, or other undo tablespaces)'
  if (gap.readableFrom === LSN_MAX) {
    const why = isUnlogged
      ? `at LSN ${gap.from} ${content}, and the import that brings it`
      : `redo from LSN ${gap.from} on was lost, and the import that mends it`
    throw retryError(`LSN ${lsn} of timeline ${name} cannot be read yet: ${why} has not ended`)
  }
  if (lsn === ingestedLsn && asked !== lsn)
    throw retryError(
      `timeline ${name} is at LSN ${lsn}; it can be read once it has reached LSN ${gap.readableFrom}`,
    )
  const between = `between LSN ${gap.from} and LSN ${gap.readableFrom}`
  const why = isFirst
    ? `it is readable from LSN ${gap.readableFrom}, where its import ended`
    : `${between} ${isUnlogged ? content : 'redo was lost'}`
  throw invalidError(`LSN ${lsn} of timeline ${name} cannot be read: ${why}`, lsn)
}
