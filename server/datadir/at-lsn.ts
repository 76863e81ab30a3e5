/** Which LSN a person means: a number, a moment, or the newest. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Connection } from '../../protocol/connection.ts'
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { MessageType, type TimelineStatus } from '../../protocol/messages.ts'
import { invalidError, PalimpsestError, retryError } from '../shared/errors.ts'
import { formatTime } from '../shared/format.ts'

export interface Moment {
  readonly lsn?: Lsn | undefined
  /** Microseconds since 1970. */
  readonly timeUs?: number | undefined
}

export interface ResolvedMoment {
  readonly lsn: Lsn
  /** For a moment given as time: when the redo up to `lsn` was seen, and when the first beyond it. */
  readonly sampleTimeUs: number | undefined
  readonly nextSampleTimeUs: number | undefined
}

const WAIT_MS = 30_000
/** So much may the clocks of two machines differ. */
const CLOCKS_APART_US = 60_000_000
/** For the redo of a moment that has just been to arrive. */
const NEXT_SAMPLE_MS = 2000
const NEXT_SAMPLE_POLL_MS = 200

/**
 * Resolves a moment and makes sure that the page server can answer for it: an LSN that is still to come is waited for,
 * half a minute.
 * @param onWait told that it waits
 * @throws PalimpsestError that names the LSNs that can be had
 */
export async function resolveMoment(
  pageServer: Connection,
  status: TimelineStatus,
  moment: Moment,
  onWait?: (text: string) => void,
): Promise<ResolvedMoment> {
  const { summary, gaps } = status
  if (summary.readableFromLsn === LSN_MAX)
    throw invalidError(
      `timeline ${summary.name} holds no whole database yet: try again when its import has ended, or begin one with "palimpsest attach" or "import"`,
    )
  const sampled = moment.timeUs === undefined ? undefined : await atTime(pageServer, status, moment.timeUs)
  const lsn = sampled?.lsn ?? moment.lsn ?? summary.ingestedLsn
  if (lsn < summary.readableFromLsn)
    throw invalidError(
      `timeline ${summary.name} can be read from LSN ${summary.readableFromLsn} on, where its import ended; ${moment.timeUs === undefined ? `LSN ${lsn}` : `that moment (LSN ${lsn})`} is before it`,
      lsn,
    )
  const gap = gaps.find(g => lsn > g.fromLsn && lsn < g.toLsn)
  if (gap?.toLsn === LSN_MAX)
    throw retryError(
      `timeline ${summary.name} can be read up to LSN ${gap.fromLsn}; from there on pages are still being imported that the redo does not tell (the server's log overtook the reader, or IMPORT TABLESPACE). Try again when the agent says that it has imported them, or choose an earlier LSN`,
      lsn,
    )
  if (gap)
    throw invalidError(
      `LSN ${lsn} lies in a gap of timeline ${summary.name}: the server's log had overtaken the reader between LSN ${gap.fromLsn} and LSN ${gap.toLsn}, or content came that is not in it (IMPORT TABLESPACE); choose one of these`,
      lsn,
    )
  if (lsn > summary.ingestedLsn) {
    onWait?.(
      `LSN ${lsn} is beyond the end of timeline ${summary.name}, which is LSN ${summary.ingestedLsn} now; waiting up to ${WAIT_MS / 1000} s for it`,
    )
    await waitForLsn(pageServer, status, lsn)
  }
  return { lsn, sampleTimeUs: sampled?.sampleTimeUs, nextSampleTimeUs: sampled?.nextSampleTimeUs }
}

async function waitForLsn(pageServer: Connection, { summary }: TimelineStatus, lsn: Lsn): Promise<void> {
  const { timeline, name } = summary
  try {
    await pageServer.request(
      { type: MessageType.WaitLsn, timeline, lsn, timeoutMs: WAIT_MS },
      { deadlineMs: WAIT_MS + 5000 },
    )
  } catch (error) {
    if (!(error instanceof PalimpsestError) || error.kind !== 'retry') throw error
    throw retryError(
      `LSN ${lsn} is beyond the end of timeline ${name}, and ${WAIT_MS / 1000} s of waiting did not bring it (${error.message}); choose an LSN up to the end, or see with "palimpsest status" what holds the redo up`,
      error,
    )
  }
}

/**
 * What was there at a moment is what had been seen by then, if something was seen later: only then is it known that
 * somebody was looking. The newest sample alone does not tell whether the server stood still since, or the agent.
 */
async function atTime(
  pageServer: Connection,
  { summary, gaps }: TimelineStatus,
  timeUs: number,
): Promise<ResolvedMoment> {
  const { timeline, name } = summary
  const now = Date.now()
  if (timeUs > now * 1000 + CLOCKS_APART_US)
    throw invalidError(
      `${formatTime(timeUs)} is still to come: it is ${formatTime(now * 1000)} now. A time without a zone is local time; leave --time out for the newest state`,
    )
  const deadline = performance.now() + NEXT_SAMPLE_MS
  for (;;) {
    const type = MessageType.LsnAtTime
    const { lsn, timeUs: sampleTimeUs } = (await pageServer.request({ type, timeline, timeUs })).message
    const beyond = { type: MessageType.TimeAtLsn, timeline, lsn: (lsn + 1) as Lsn } as const
    const next = (await pageServer.request(beyond)).message
    if (timeUs === sampleTimeUs) return { lsn, sampleTimeUs, nextSampleTimeUs: undefined }
    if (next.lsn > lsn) {
      const gap = gaps.find(({ fromLsn }) => fromLsn >= lsn && fromLsn < next.lsn)
      if (gap !== undefined && lsn >= summary.readableFromLsn)
        throw invalidError(
          `${formatTime(timeUs)} lies in a gap of timeline ${name}, from ${formatTime(sampleTimeUs)} to ${formatTime(next.timeUs)}: what the server wrote then is not known. ` +
            `Choose one of its ends (--lsn ${gap.fromLsn}${gap.toLsn === LSN_MAX ? '' : ` or --lsn ${gap.toLsn}`}), or another time`,
          lsn,
        )
      return { lsn, sampleTimeUs, nextSampleTimeUs: next.timeUs }
    }
    if (performance.now() > deadline)
      throw invalidError(
        `${formatTime(timeUs)} is later than the newest change that timeline ${name} knows: ${formatTime(sampleTimeUs)} (LSN ${lsn}). Whether the server made others by then is not known; ` +
          `is its agent running? Choose a time up to that one, or --lsn ${lsn}, or leave --time out for the newest state`,
        lsn,
      )
    await sleep(NEXT_SAMPLE_POLL_MS)
  }
}

/** All tablespaces at an LSN. */
export async function listSpaces(pageServer: Connection, status: TimelineStatus, lsn: Lsn) {
  const replies = await pageServer.requestAll({
    type: MessageType.SpaceList,
    timeline: status.summary.timeline,
    lsn,
  })
  return replies.flatMap(({ message }) => message.spaces)
}

/** All other files at an LSN. */
export async function listFiles(pageServer: Connection, status: TimelineStatus, lsn: Lsn) {
  const replies = await pageServer.requestAll({
    type: MessageType.FileList,
    timeline: status.summary.timeline,
    lsn,
  })
  return replies.flatMap(({ message }) => message.files)
}
