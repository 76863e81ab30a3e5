/** Messages of a log's writer: what the attach agent says to a safekeeper. */
import { type Codec, checkPeerName, checkStretch } from './codec.ts'
import type { Lsn, TimelineId, WriterEpoch } from './ids.ts'
import { MessageType } from './message-types.ts'

/**
 * Makes the sender the timeline's only writer: the epoch grows by one, older epochs are fenced. → WalOpened
 *
 *     timeline | string writer (1 to 128 printable ASCII characters, for logs)
 */
export interface WalOpen {
  readonly type: typeof MessageType.WalOpen
  readonly timeline: TimelineId
  readonly writer: string
}

export const WalOpenCodec: Codec<WalOpen> = {
  type: MessageType.WalOpen,
  name: 'WalOpen',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.string(m.writer)
  },
  decode: r => ({
    type: MessageType.WalOpen,
    timeline: r.timeline(),
    writer: r.checked('writer', checkPeerName),
  }),
}

/** `u64 epoch | u64 beginLsn (oldest held) | u64 endLsn (where the next append must begin)`. */
export interface WalOpened {
  readonly type: typeof MessageType.WalOpened
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
}

export const WalOpenedCodec: Codec<WalOpened> = {
  type: MessageType.WalOpened,
  name: 'WalOpened',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.epoch)
    w.u64(m.beginLsn)
    w.u64(m.endLsn)
  },
  decode: r => ({
    type: MessageType.WalOpened,
    epoch: r.u64('epoch') as WriterEpoch,
    beginLsn: r.lsn('beginLsn'),
    endLsn: r.lsn('endLsn'),
  }),
}

/**
 * Appends the bulk, whole mini-transactions of redo that begin at `beginLsn`; beginLsn + bulk bytes is the next LSN.
 * Answered when it is durable; the answers come in the order of the appends. → WalAppended
 *
 *     timeline | u64 epoch | u64 beginLsn | u64 wallTimeUs (when the writer saw them)      bulk: redo
 */
export interface WalAppend {
  readonly type: typeof MessageType.WalAppend
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly wallTimeUs: number
}

export const WalAppendCodec: Codec<WalAppend> = {
  type: MessageType.WalAppend,
  name: 'WalAppend',
  bulk: 'plain',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.epoch)
    w.u64(m.beginLsn)
    w.u64(m.wallTimeUs)
  },
  decode: r => ({
    type: MessageType.WalAppend,
    timeline: r.timeline(),
    epoch: r.u64('epoch') as WriterEpoch,
    beginLsn: r.lsn('beginLsn'),
    wallTimeUs: r.u64('wallTimeUs'),
  }),
}

/**
 * The redo from `fromLsn` (the end of the log) to `toLsn` is lost to the writer; the log goes on at `toLsn`. → WalAppended
 *
 *     timeline | u64 epoch | u64 fromLsn | u64 toLsn | u64 wallTimeUs
 */
export interface WalSkip {
  readonly type: typeof MessageType.WalSkip
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
  readonly fromLsn: Lsn
  readonly toLsn: Lsn
  readonly wallTimeUs: number
}

export const WalSkipCodec: Codec<WalSkip> = {
  type: MessageType.WalSkip,
  name: 'WalSkip',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.epoch)
    w.u64(m.fromLsn)
    w.u64(m.toLsn)
    w.u64(m.wallTimeUs)
  },
  decode(r) {
    const message: WalSkip = {
      type: MessageType.WalSkip,
      timeline: r.timeline(),
      epoch: r.u64('epoch') as WriterEpoch,
      fromLsn: r.lsn('fromLsn'),
      toLsn: r.lsn('toLsn'),
      wallTimeUs: r.u64('wallTimeUs'),
    }
    checkStretch(r, message)
    return message
  },
}

/** `u64 flushedLsn (fsynced here) | u64 committedLsn (on a quorum)`. */
export interface WalAppended {
  readonly type: typeof MessageType.WalAppended
  readonly flushedLsn: Lsn
  readonly committedLsn: Lsn
}

export const WalAppendedCodec: Codec<WalAppended> = {
  type: MessageType.WalAppended,
  name: 'WalAppended',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.flushedLsn)
    w.u64(m.committedLsn)
  },
  decode: r => ({
    type: MessageType.WalAppended,
    flushedLsn: r.lsn('flushedLsn'),
    committedLsn: r.lsn('committedLsn'),
  }),
}
