/** Which LSN a person means: a number, a moment, or the newest. */
import type { Connection } from '../../protocol/connection.ts'
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { MessageType, type TimelineStatus } from '../../protocol/messages.ts'
import { invalidError, retryError } from '../shared/errors.ts'

export interface Moment {
  readonly lsn?: Lsn | undefined
  /** Microseconds since 1970. */
  readonly timeUs?: number | undefined
}

export interface ResolvedMoment {
  readonly lsn: Lsn
  /** For a moment given as time: when the redo up to `lsn` was seen. */
  readonly sampleTimeUs: number | undefined
}

const WAIT_MS = 30_000
/** So much may the clocks of two machines differ. */
const CLOCKS_APART_US = 60_000_000

/**
 * Resolves a moment and makes sure that the page server can answer for it: an LSN that is still to come is waited for,
 * half a minute.
 * @throws PalimpsestError that names the LSNs that can be had
 */
export async function resolveMoment(
  pageServer: Connection,
  status: TimelineStatus,
  moment: Moment,
): Promise<ResolvedMoment> {
  const { summary, gaps } = status
  const { timeline } = summary
  let lsn = moment.lsn ?? summary.ingestedLsn
  let sampleTimeUs: number | undefined
  if (summary.readableFromLsn === LSN_MAX)
    throw invalidError(
      `timeline ${summary.name} holds no whole database yet: try again when its import has ended, or begin one with "palimpsest attach" or "import"`,
    )
  if (moment.timeUs !== undefined) {
    const now = Date.now()
    if (moment.timeUs > now * 1000 + CLOCKS_APART_US)
      throw invalidError(
        `${new Date(moment.timeUs / 1000).toISOString()} is still to come: it is ${new Date(now).toISOString()} now. A time without a zone is local time; leave --time out for the newest state`,
      )
    const { message } = await pageServer.request({
      type: MessageType.LsnAtTime,
      timeline,
      timeUs: moment.timeUs,
    })
    lsn = message.lsn
    sampleTimeUs = message.timeUs
  }
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
  if (lsn > summary.ingestedLsn)
    await pageServer.request(
      { type: MessageType.WaitLsn, timeline, lsn, timeoutMs: WAIT_MS },
      { deadlineMs: WAIT_MS + 5000 },
    )
  return { lsn, sampleTimeUs }
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
