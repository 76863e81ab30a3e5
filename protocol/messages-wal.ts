/** Messages of the log: what the attach agent and the page server say to a safekeeper. */
import { type Codec, checkPeerName } from './codec.ts'
import { checkTimelineName, type Lsn, type TimelineId, type WriterEpoch } from './ids.ts'
import { MessageType } from './message-types.ts'

/**
 * Makes a timeline's log that begins at `startLsn`. The same request again is answered Ok. → Ok
 *
 *     timeline | u64 startLsn | string name
 */
export interface WalCreate {
  readonly type: typeof MessageType.WalCreate
  readonly timeline: TimelineId
  readonly startLsn: Lsn
  readonly name: string
}

export const WalCreateCodec: Codec<WalCreate> = {
  type: MessageType.WalCreate,
  name: 'WalCreate',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.startLsn)
    w.string(m.name)
  },
  decode: r => ({
    type: MessageType.WalCreate,
    timeline: r.timeline(),
    startLsn: r.lsn('startLsn'),
    name: r.checked('name', checkTimelineName),
  }),
}

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
    if (message.toLsn <= message.fromLsn)
      r.fail(`toLsn ${message.toLsn} is not above fromLsn ${message.fromLsn}`)
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
  decode: r => ({
    type: MessageType.WalGap,
    fromLsn: r.lsn('fromLsn'),
    toLsn: r.lsn('toLsn'),
    wallTimeUs: r.u64('wallTimeUs'),
  }),
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

/** `timeline`. → WalStateReply */
export interface WalState {
  readonly type: typeof MessageType.WalState
  readonly timeline: TimelineId
}

export const WalStateCodec: Codec<WalState> = {
  type: MessageType.WalState,
  name: 'WalState',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.WalState, timeline: r.timeline() }),
}

/**
 *     u64 epoch | u64 beginLsn | u64 flushedLsn | u64 committedLsn | u64 bytesHeld | u64 lastWallTimeUs
 *     string name | string writer | string lastError
 *     u32 count | count × { u64 durableLsn | string consumer }
 */
export interface WalStateReply {
  readonly type: typeof MessageType.WalStateReply
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly flushedLsn: Lsn
  readonly committedLsn: Lsn
  /** Bytes of segment files on disk. */
  readonly bytesHeld: number
  /** Of the newest chunk; 0 if there is none. */
  readonly lastWallTimeUs: number
  readonly name: string
  /** The last writer's name; empty before the first. */
  readonly writer: string
  /** Why appends are refused at present (a full disk); empty if they are not. */
  readonly lastError: string
  readonly consumers: readonly { readonly consumer: string; readonly durableLsn: Lsn }[]
}

export const WalStateReplyCodec: Codec<WalStateReply> = {
  type: MessageType.WalStateReply,
  name: 'WalStateReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.epoch)
    w.u64(m.beginLsn)
    w.u64(m.flushedLsn)
    w.u64(m.committedLsn)
    w.u64(m.bytesHeld)
    w.u64(m.lastWallTimeUs)
    w.string(m.name)
    w.string(m.writer)
    w.string(m.lastError)
    w.u32(m.consumers.length)
    for (const c of m.consumers) {
      w.u64(c.durableLsn)
      w.string(c.consumer)
    }
  },
  decode: r => ({
    type: MessageType.WalStateReply,
    epoch: r.u64('epoch') as WriterEpoch,
    beginLsn: r.lsn('beginLsn'),
    flushedLsn: r.lsn('flushedLsn'),
    committedLsn: r.lsn('committedLsn'),
    bytesHeld: r.u64('bytesHeld'),
    lastWallTimeUs: r.u64('lastWallTimeUs'),
    name: r.string('name'),
    writer: r.string('writer'),
    lastError: r.string('lastError'),
    consumers: Array.from({ length: r.count('consumers', 10) }, () => {
      const durableLsn = r.lsn('durableLsn')
      return { durableLsn, consumer: r.checked('consumer', checkPeerName) }
    }),
  }),
}

/** No fields. → one or more WalListReply */
export interface WalList {
  readonly type: typeof MessageType.WalList
}

export const WalListCodec: Codec<WalList> = {
  type: MessageType.WalList,
  name: 'WalList',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.WalList }),
}

export interface WalListItem {
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly committedLsn: Lsn
  readonly name: string
}

/** `u32 count | count × { timeline | u64 epoch | u64 beginLsn | u64 committedLsn | string name }`. */
export interface WalListReply {
  readonly type: typeof MessageType.WalListReply
  readonly timelines: readonly WalListItem[]
}

export const WalListReplyCodec: Codec<WalListReply> = {
  type: MessageType.WalListReply,
  name: 'WalListReply',
  bulk: 'none',
  encode(w, m) {
    w.u32(m.timelines.length)
    for (const t of m.timelines) {
      w.timeline(t.timeline)
      w.u64(t.epoch)
      w.u64(t.beginLsn)
      w.u64(t.committedLsn)
      w.string(t.name)
    }
  },
  decode: r => ({
    type: MessageType.WalListReply,
    timelines: Array.from({ length: r.count('timelines', 42) }, () => ({
      timeline: r.timeline(),
      epoch: r.u64('epoch') as WriterEpoch,
      beginLsn: r.lsn('beginLsn'),
      committedLsn: r.lsn('committedLsn'),
      name: r.string('name'),
    })),
  }),
}

/** Removes the timeline's log, whoever still wants it. `timeline`. → Ok */
export interface WalDelete {
  readonly type: typeof MessageType.WalDelete
  readonly timeline: TimelineId
}

export const WalDeleteCodec: Codec<WalDelete> = {
  type: MessageType.WalDelete,
  name: 'WalDelete',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.WalDelete, timeline: r.timeline() }),
}

/**
 * Gives the timeline another name; nobody else's. Again is Ok. → Ok
 *
 *     timeline | string name
 */
export interface WalRename {
  readonly type: typeof MessageType.WalRename
  readonly timeline: TimelineId
  readonly name: string
}

export const WalRenameCodec: Codec<WalRename> = {
  type: MessageType.WalRename,
  name: 'WalRename',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.string(m.name)
  },
  decode: r => ({
    type: MessageType.WalRename,
    timeline: r.timeline(),
    name: r.checked('name', checkTimelineName),
  }),
}

/**
 * Makes a timeline whose log is the ancestor's up to `lsn` and its own from there on; costs the same for any. Where the
 * ancestor's redo is held, the branch point is the last end of a chunk at or below `lsn`; below that the sender
 * vouches that `lsn` is the end of a mini-transaction. Again with the same fields is harmless. → WalBranched
 *
 *     timeline (of the branch) | timeline ancestor | u64 lsn | string name
 */
export interface WalBranch {
  readonly type: typeof MessageType.WalBranch
  readonly timeline: TimelineId
  readonly ancestor: TimelineId
  readonly lsn: Lsn
  readonly name: string
}

export const WalBranchCodec: Codec<WalBranch> = {
  type: MessageType.WalBranch,
  name: 'WalBranch',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.timeline(m.ancestor)
    w.u64(m.lsn)
    w.string(m.name)
  },
  decode: r => ({
    type: MessageType.WalBranch,
    timeline: r.timeline(),
    ancestor: r.timeline('ancestor'),
    lsn: r.lsn(),
    name: r.checked('name', checkTimelineName),
  }),
}

/** `u64 lsn`: where the branch begins. */
export interface WalBranched {
  readonly type: typeof MessageType.WalBranched
  readonly lsn: Lsn
}

export const WalBranchedCodec: Codec<WalBranched> = {
  type: MessageType.WalBranched,
  name: 'WalBranched',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.lsn)
  },
  decode: r => ({ type: MessageType.WalBranched, lsn: r.lsn() }),
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

/** What this node holds of a timeline, be it the newest or not; any node answers. `timeline`. → WalShowReply */
export interface WalShow {
  readonly type: typeof MessageType.WalShow
  readonly timeline: TimelineId
}

export const WalShowCodec: Codec<WalShow> = {
  type: MessageType.WalShow,
  name: 'WalShow',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.WalShow, timeline: r.timeline() }),
}

/**
 *     u64 startLsn | u64 beginLsn | u64 committedLsn | u64 epoch | u64 rawBytes (redo held) | u64 storedBytes (as stored)
 *     timeline ancestor (16 zero bytes: none) | u32 branches | string name | string writer
 */
export interface WalShowReply {
  readonly type: typeof MessageType.WalShowReply
  readonly startLsn: Lsn
  readonly beginLsn: Lsn
  readonly committedLsn: Lsn
  readonly epoch: WriterEpoch
  readonly rawBytes: number
  readonly storedBytes: number
  /** It branched off there at `startLsn`. */
  readonly ancestor: TimelineId | undefined
  readonly branches: number
  readonly name: string
  readonly writer: string
}

const NO_TIMELINE = '0'.repeat(32) as TimelineId

export const WalShowReplyCodec: Codec<WalShowReply> = {
  type: MessageType.WalShowReply,
  name: 'WalShowReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.startLsn)
    w.u64(m.beginLsn)
    w.u64(m.committedLsn)
    w.u64(m.epoch)
    w.u64(m.rawBytes)
    w.u64(m.storedBytes)
    w.timeline(m.ancestor ?? NO_TIMELINE)
    w.u32(m.branches)
    w.string(m.name)
    w.string(m.writer)
  },
  decode(r) {
    const startLsn = r.lsn('startLsn')
    const beginLsn = r.lsn('beginLsn')
    const committedLsn = r.lsn('committedLsn')
    const epoch = r.u64('epoch') as WriterEpoch
    const rawBytes = r.u64('rawBytes')
    const storedBytes = r.u64('storedBytes')
    const ancestor = r.timeline('ancestor')
    return {
      type: MessageType.WalShowReply,
      startLsn,
      beginLsn,
      committedLsn,
      epoch,
      rawBytes,
      storedBytes,
      ancestor: ancestor === NO_TIMELINE ? undefined : ancestor,
      branches: r.u32('branches'),
      name: r.string('name'),
      writer: r.string('writer'),
    }
  },
}
