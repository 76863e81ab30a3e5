/** Messages of a log's readers, and of what they let go: what the page server says to a safekeeper. */
import { type Codec, checkPeerName, checkStretch } from './codec.ts'
import type { Lsn, TimelineId } from './ids.ts'
import { MessageType } from './message-types.ts'

/**
 * Streams the committed log from `fromLsn`, which must be a chunk boundary: WalData and WalGap frames with flag MORE.
 * Without `follow` it ends with WalReadEnd at the committed end; with it, it goes on until the client ends it.
 *
 *     timeline | u64 fromLsn | u8 follow
 */
export interface WalRead {
  readonly type: typeof MessageType.WalRead
  readonly timeline: TimelineId
  readonly fromLsn: Lsn
  readonly follow: boolean
}

export const WalReadCodec: Codec<WalRead> = {
  type: MessageType.WalRead,
  name: 'WalRead',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.fromLsn)
    w.bool(m.follow)
  },
  decode: r => ({
    type: MessageType.WalRead,
    timeline: r.timeline(),
    fromLsn: r.lsn('fromLsn'),
    follow: r.bool('follow'),
  }),
}

/**
 * One chunk of redo exactly as it was appended.
 *
 *     u64 beginLsn | u64 wallTimeUs (of the append) | u64 committedLsn (now)      bulk: redo
 */
export interface WalData {
  readonly type: typeof MessageType.WalData
  readonly beginLsn: Lsn
  readonly wallTimeUs: number
  readonly committedLsn: Lsn
}

export const WalDataCodec: Codec<WalData> = {
  type: MessageType.WalData,
  name: 'WalData',
  bulk: 'plain',
  encode(w, m) {
    w.u64(m.beginLsn)
    w.u64(m.wallTimeUs)
    w.u64(m.committedLsn)
  },
  decode: r => ({
    type: MessageType.WalData,
    beginLsn: r.lsn('beginLsn'),
    wallTimeUs: r.u64('wallTimeUs'),
    committedLsn: r.lsn('committedLsn'),
  }),
}

/** What WalSkip left: `u64 fromLsn | u64 toLsn | u64 wallTimeUs`. */
export interface WalGap {
  readonly type: typeof MessageType.WalGap
  readonly fromLsn: Lsn
  readonly toLsn: Lsn
  readonly wallTimeUs: number
}

export const WalGapCodec: Codec<WalGap> = {
  type: MessageType.WalGap,
  name: 'WalGap',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.fromLsn)
    w.u64(m.toLsn)
    w.u64(m.wallTimeUs)
  },
  decode(r) {
    const message: WalGap = {
      type: MessageType.WalGap,
      fromLsn: r.lsn('fromLsn'),
      toLsn: r.lsn('toLsn'),
      wallTimeUs: r.u64('wallTimeUs'),
    }
    checkStretch(r, message)
    return message
  },
}

/** The end of a WalRead without follow: `u64 endLsn`, the LSN after the last chunk. */
export interface WalReadEnd {
  readonly type: typeof MessageType.WalReadEnd
  readonly endLsn: Lsn
}

export const WalReadEndCodec: Codec<WalReadEnd> = {
  type: MessageType.WalReadEnd,
  name: 'WalReadEnd',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.endLsn)
  },
  decode: r => ({ type: MessageType.WalReadEnd, endLsn: r.lsn('endLsn') }),
}

/**
 * The consumer needs nothing below `durableLsn` any more. The log is kept from the smallest LSN of all consumers that
 * ever sent one; a consumer that needs the log from the beginning says so with the LSN that it needs. → WalTrimmed
 *
 *     timeline | u64 durableLsn | string consumer (1 to 128 printable ASCII characters)
 */
export interface WalTrim {
  readonly type: typeof MessageType.WalTrim
  readonly timeline: TimelineId
  readonly durableLsn: Lsn
  readonly consumer: string
}

export const WalTrimCodec: Codec<WalTrim> = {
  type: MessageType.WalTrim,
  name: 'WalTrim',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.durableLsn)
    w.string(m.consumer)
  },
  decode: r => ({
    type: MessageType.WalTrim,
    timeline: r.timeline(),
    durableLsn: r.lsn('durableLsn'),
    consumer: r.checked('consumer', checkPeerName),
  }),
}

/** `u64 beginLsn`: the oldest LSN that is still held. */
export interface WalTrimmed {
  readonly type: typeof MessageType.WalTrimmed
  readonly beginLsn: Lsn
}

export const WalTrimmedCodec: Codec<WalTrimmed> = {
  type: MessageType.WalTrimmed,
  name: 'WalTrimmed',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.beginLsn)
  },
  decode: r => ({ type: MessageType.WalTrimmed, beginLsn: r.lsn('beginLsn') }),
}

/**
 * Forgets a consumer that will not come back: the log is no longer kept for it. → Ok
 *
 *     timeline | string consumer
 */
export interface WalConsumerDrop {
  readonly type: typeof MessageType.WalConsumerDrop
  readonly timeline: TimelineId
  readonly consumer: string
}

export const WalConsumerDropCodec: Codec<WalConsumerDrop> = {
  type: MessageType.WalConsumerDrop,
  name: 'WalConsumerDrop',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.string(m.consumer)
  },
  decode: r => ({
    type: MessageType.WalConsumerDrop,
    timeline: r.timeline(),
    consumer: r.checked('consumer', checkPeerName),
  }),
}
