/** Messages about timelines of a page server: create, list, status, LSN and time, checkpoint. */
import { type Codec, TEXT_BYTES_MAX } from './codec.ts'
import type { ByteReader, ByteWriter } from './cursor.ts'
import { checkTimelineName, type Lsn, type TimelineId } from './ids.ts'
import { MessageType } from './message-types.ts'

/** In the order of their numbers on the wire, which begin with 0. */
export const TIMELINE_STATES = ['importing', 'active', 'stopped', 'deleting'] as const
/** stopped: ingestion ended at an error, which the status tells; reads up to there go on. */
export type TimelineState = (typeof TIMELINE_STATES)[number]

function decodeState(r: ByteReader): TimelineState {
  const number = r.u8('state')
  return TIMELINE_STATES[number] ?? r.fail(`timeline state ${number} is unknown`)
}

/** Those of `innodb_page_size`. */
export const INNODB_PAGE_SIZES: readonly number[] = [4096, 8192, 16384, 32768, 65536]

/**
 * Makes a timeline and begins to follow its log from `startLsn`. The same request again is answered Ok. → Ok
 *
 *     timeline | u64 startLsn | u32 innodbPageSize | string name | string serverVersion
 */
export interface TimelineCreate {
  readonly type: typeof MessageType.TimelineCreate
  readonly timeline: TimelineId
  readonly startLsn: Lsn
  /** `innodb_page_size` in bytes: 4096 to 65536. */
  readonly innodbPageSize: number
  readonly name: string
  /** As the MariaDB server tells it, e.g. `10.11.18-MariaDB`; empty if unknown. */
  readonly serverVersion: string
}

export const TimelineCreateCodec: Codec<TimelineCreate> = {
  type: MessageType.TimelineCreate,
  name: 'TimelineCreate',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.startLsn)
    w.u32(m.innodbPageSize)
    w.string(m.name)
    w.string(m.serverVersion, 'serverVersion', 256)
  },
  decode(r) {
    const timeline = r.timeline()
    const startLsn = r.lsn('startLsn')
    const innodbPageSize = r.u32('innodbPageSize')
    if (!INNODB_PAGE_SIZES.includes(innodbPageSize))
      r.fail(`innodbPageSize ${innodbPageSize} is none of InnoDB's`)
    return {
      type: MessageType.TimelineCreate,
      timeline,
      startLsn,
      innodbPageSize,
      name: r.checked('name', checkTimelineName),
      serverVersion: r.text('serverVersion', 256),
    }
  },
}

/** No fields. → one or more TimelineListReply */
export interface TimelineList {
  readonly type: typeof MessageType.TimelineList
}

export const TimelineListCodec: Codec<TimelineList> = {
  type: MessageType.TimelineList,
  name: 'TimelineList',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.TimelineList }),
}

export interface TimelineSummary {
  readonly timeline: TimelineId
  readonly startLsn: Lsn
  readonly readableFromLsn: Lsn
  readonly ingestedLsn: Lsn
  readonly durableLsn: Lsn
  /** Wall clock of the newest ingested chunk, microseconds since 1970; 0 before the first. */
  readonly lastWallTimeUs: number
  readonly innodbPageSize: number
  readonly state: TimelineState
  readonly name: string
}

/** `timeline | u64 × 5 | u32 innodbPageSize | u8 state | string name`, in the order of the interface. */
function encodeSummary(w: ByteWriter, t: TimelineSummary): void {
  w.timeline(t.timeline)
  w.u64(t.startLsn)
  w.u64(t.readableFromLsn)
  w.u64(t.ingestedLsn)
  w.u64(t.durableLsn)
  w.u64(t.lastWallTimeUs)
  w.u32(t.innodbPageSize)
  w.u8(TIMELINE_STATES.indexOf(t.state))
  w.string(t.name)
}

function decodeSummary(r: ByteReader): TimelineSummary {
  return {
    timeline: r.timeline(),
    startLsn: r.lsn('startLsn'),
    readableFromLsn: r.lsn('readableFromLsn'),
    ingestedLsn: r.lsn('ingestedLsn'),
    durableLsn: r.lsn('durableLsn'),
    lastWallTimeUs: r.u64('lastWallTimeUs'),
    innodbPageSize: r.u32('innodbPageSize'),
    state: decodeState(r),
    name: r.checked('name', checkTimelineName),
  }
}

/** `u32 count | count × summary`. */
export interface TimelineListReply {
  readonly type: typeof MessageType.TimelineListReply
  readonly timelines: readonly TimelineSummary[]
}

export const TimelineListReplyCodec: Codec<TimelineListReply> = {
  type: MessageType.TimelineListReply,
  name: 'TimelineListReply',
  bulk: 'none',
  encode(w, m) {
    w.u32(m.timelines.length)
    for (const t of m.timelines) encodeSummary(w, t)
  },
  decode: r => ({
    type: MessageType.TimelineListReply,
    timelines: Array.from({ length: r.count('timelines', 63) }, () => decodeSummary(r)),
  }),
}

/**
 * One timeline's status, by id, or by name if `timeline` is undefined (16 zero bytes). → TimelineStatus
 *
 *     timeline | string name (empty if by id)
 */
export interface TimelineShow {
  readonly type: typeof MessageType.TimelineShow
  readonly timeline: TimelineId | undefined
  readonly name: string
}

export const TimelineShowCodec: Codec<TimelineShow> = {
  type: MessageType.TimelineShow,
  name: 'TimelineShow',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.string(m.name)
  },
  decode(r) {
    const timeline = r.timelineOrNone()
    const name = timeline === undefined ? r.checked('name', checkTimelineName) : r.string('name', 63)
    return { type: MessageType.TimelineShow, timeline, name }
  },
}

/**
 *     summary (as in TimelineListReply)
 *     u64 arenaBytes | u32 deltaLayers | u32 imageLayers | u64 layerBytes | u32 spaces | u32 files
 *     string serverVersion | string lastError
 *     u32 count | count × { u64 fromLsn | u64 toLsn }                          gaps that cannot be read
 */
export interface TimelineStatus {
  readonly type: typeof MessageType.TimelineStatus
  readonly summary: TimelineSummary
  /** Redo that is in memory and not yet in layers. */
  readonly arenaBytes: number
  readonly deltaLayers: number
  readonly imageLayers: number
  readonly layerBytes: number
  /** Tablespaces and other files that exist at the ingested LSN. */
  readonly spaces: number
  readonly files: number
  readonly serverVersion: string
  /** Why the timeline stopped or waits; empty if all is well. */
  readonly lastError: string
  /** LSNs strictly between the two ends cannot be read: the ring overtook the reader there. */
  readonly gaps: readonly { readonly fromLsn: Lsn; readonly toLsn: Lsn }[]
}

export const TimelineStatusCodec: Codec<TimelineStatus> = {
  type: MessageType.TimelineStatus,
  name: 'TimelineStatus',
  bulk: 'none',
  encode(w, m) {
    encodeSummary(w, m.summary)
    w.u64(m.arenaBytes)
    w.u32(m.deltaLayers)
    w.u32(m.imageLayers)
    w.u64(m.layerBytes)
    w.u32(m.spaces)
    w.u32(m.files)
    w.string(m.serverVersion, 'serverVersion', 256)
    w.string(m.lastError, 'lastError', TEXT_BYTES_MAX)
    w.u32(m.gaps.length)
    for (const gap of m.gaps) {
      w.u64(gap.fromLsn)
      w.u64(gap.toLsn)
    }
  },
  decode: r => ({
    type: MessageType.TimelineStatus,
    summary: decodeSummary(r),
    arenaBytes: r.u64('arenaBytes'),
    deltaLayers: r.u32('deltaLayers'),
    imageLayers: r.u32('imageLayers'),
    layerBytes: r.u64('layerBytes'),
    spaces: r.u32('spaces'),
    files: r.u32('files'),
    serverVersion: r.text('serverVersion', 256),
    lastError: r.text('lastError', TEXT_BYTES_MAX),
    gaps: Array.from({ length: r.count('gaps', 16) }, () => ({
      fromLsn: r.lsn('fromLsn'),
      toLsn: r.lsn('toLsn'),
    })),
  }),
}

/** `timeline`. → Ok */
export interface TimelineDelete {
  readonly type: typeof MessageType.TimelineDelete
  readonly timeline: TimelineId
}

export const TimelineDeleteCodec: Codec<TimelineDelete> = {
  type: MessageType.TimelineDelete,
  name: 'TimelineDelete',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.TimelineDelete, timeline: r.timeline() }),
}

/**
 * Waits until `lsn` is ingested, at most `timeoutMs`; then an error of kind retry. → WaitLsnReply
 *
 *     timeline | u64 lsn | u32 timeoutMs
 */
export interface WaitLsn {
  readonly type: typeof MessageType.WaitLsn
  readonly timeline: TimelineId
  readonly lsn: Lsn
  readonly timeoutMs: number
}

export const WaitLsnCodec: Codec<WaitLsn> = {
  type: MessageType.WaitLsn,
  name: 'WaitLsn',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
    w.u32(m.timeoutMs)
  },
  decode: r => ({
    type: MessageType.WaitLsn,
    timeline: r.timeline(),
    lsn: r.lsn(),
    timeoutMs: r.u32('timeoutMs'),
  }),
}

/** `u64 ingestedLsn`. */
export interface WaitLsnReply {
  readonly type: typeof MessageType.WaitLsnReply
  readonly ingestedLsn: Lsn
}

export const WaitLsnReplyCodec: Codec<WaitLsnReply> = {
  type: MessageType.WaitLsnReply,
  name: 'WaitLsnReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.ingestedLsn)
  },
  decode: r => ({ type: MessageType.WaitLsnReply, ingestedLsn: r.lsn('ingestedLsn') }),
}

/** The newest LSN that was written at or before a moment: `timeline | u64 timeUs`. → LsnTime */
export interface LsnAtTime {
  readonly type: typeof MessageType.LsnAtTime
  readonly timeline: TimelineId
  readonly timeUs: number
}

export const LsnAtTimeCodec: Codec<LsnAtTime> = {
  type: MessageType.LsnAtTime,
  name: 'LsnAtTime',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.timeUs)
  },
  decode: r => ({ type: MessageType.LsnAtTime, timeline: r.timeline(), timeUs: r.u64('timeUs') }),
}

/** When an LSN was written: `timeline | u64 lsn`. → LsnTime */
export interface TimeAtLsn {
  readonly type: typeof MessageType.TimeAtLsn
  readonly timeline: TimelineId
  readonly lsn: Lsn
}

export const TimeAtLsnCodec: Codec<TimeAtLsn> = {
  type: MessageType.TimeAtLsn,
  name: 'TimeAtLsn',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
  },
  decode: r => ({ type: MessageType.TimeAtLsn, timeline: r.timeline(), lsn: r.lsn() }),
}

/** `u64 lsn | u64 timeUs`: the LSN and the wall clock of that sample. */
export interface LsnTime {
  readonly type: typeof MessageType.LsnTime
  readonly lsn: Lsn
  readonly timeUs: number
}

export const LsnTimeCodec: Codec<LsnTime> = {
  type: MessageType.LsnTime,
  name: 'LsnTime',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.lsn)
    w.u64(m.timeUs)
  },
  decode: r => ({ type: MessageType.LsnTime, lsn: r.lsn(), timeUs: r.u64('timeUs') }),
}

/** Makes all ingested redo durable now: `timeline`. → CheckpointReply */
export interface Checkpoint {
  readonly type: typeof MessageType.Checkpoint
  readonly timeline: TimelineId
}

export const CheckpointCodec: Codec<Checkpoint> = {
  type: MessageType.Checkpoint,
  name: 'Checkpoint',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.Checkpoint, timeline: r.timeline() }),
}

/** `u64 durableLsn`. */
export interface CheckpointReply {
  readonly type: typeof MessageType.CheckpointReply
  readonly durableLsn: Lsn
}

export const CheckpointReplyCodec: Codec<CheckpointReply> = {
  type: MessageType.CheckpointReply,
  name: 'CheckpointReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.durableLsn)
  },
  decode: r => ({ type: MessageType.CheckpointReply, durableLsn: r.lsn('durableLsn') }),
}
