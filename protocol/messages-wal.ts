/** Messages about the logs that a safekeeper keeps: making, naming, branching and removing them, and how they are. */
import { type Codec, checkPeerName, orEmpty } from './codec.ts'
import { checkTimelineName, type Lsn, type TimelineId, type WriterEpoch } from './ids.ts'
import { MessageType } from './message-types.ts'
import { checkCellId } from './messages-peer.ts'

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
    name: r.checked('name', checkTimelineName),
    writer: r.checked('writer', orEmpty(checkPeerName)),
    lastError: r.text('lastError'),
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
      name: r.checked('name', checkTimelineName),
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
    w.timeline(m.ancestor)
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
    const ancestor = r.timelineOrNone('ancestor')
    return {
      type: MessageType.WalShowReply,
      startLsn,
      beginLsn,
      committedLsn,
      epoch,
      rawBytes,
      storedBytes,
      ancestor,
      branches: r.u32('branches'),
      name: r.checked('name', checkTimelineName),
      writer: r.checked('writer', orEmpty(checkPeerName)),
    }
  },
}

/**
 * Where a timeline's log was cut short by a disaster: its cell was made again of what was left. Answered by any node, from what it has; a
 * WalRead that follows on the same connection ends with `retry` before it brings anything that the answer does not hold for any more.
 * `timeline`. → WalPartingsReply
 */
export interface WalPartings {
  readonly type: typeof MessageType.WalPartings
  readonly timeline: TimelineId
}

export const WalPartingsCodec: Codec<WalPartings> = {
  type: MessageType.WalPartings,
  name: 'WalPartings',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
  },
  decode: r => ({ type: MessageType.WalPartings, timeline: r.timeline() }),
}

/** Whoever had more than `lsn` when the cell of that id was made has another history than that cell. */
export interface WalParting {
  readonly lsn: Lsn
  /** 32 hexadecimal digits. */
  readonly cellId: string
}

/** `u32 n | n × {u64 lsn | string cellId}`, the oldest first. Grows at its end only. */
export interface WalPartingsReply {
  readonly type: typeof MessageType.WalPartingsReply
  readonly partings: readonly WalParting[]
}

export const WalPartingsReplyCodec: Codec<WalPartingsReply> = {
  type: MessageType.WalPartingsReply,
  name: 'WalPartingsReply',
  bulk: 'none',
  encode(w, m) {
    w.u32(m.partings.length)
    for (const { lsn, cellId } of m.partings) {
      w.u64(lsn)
      w.string(cellId)
    }
  },
  decode: r => ({
    type: MessageType.WalPartingsReply,
    partings: Array.from({ length: r.count('partings', 10) }, () => {
      const lsn = r.lsn('lsn')
      return { lsn, cellId: r.checked('cellId', checkCellId) }
    }),
  }),
}
