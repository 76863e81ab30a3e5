/** Messages about branches and names of a page server's timelines. */
import type { Codec } from './codec.ts'
import { checkTimelineName, type Lsn, type TimelineId } from './ids.ts'
import { MessageType } from './message-types.ts'

/**
 * Makes a timeline that is its ancestor up to and including `lsn` and goes its own way from there. Waits, a little, until
 * the ancestor has ingested the LSN. The same request again is answered Ok. → Ok
 *
 *     timeline | timeline ancestor | u64 lsn | string name
 */
export interface TimelineBranch {
  readonly type: typeof MessageType.TimelineBranch
  readonly timeline: TimelineId
  readonly ancestor: TimelineId
  readonly lsn: Lsn
  readonly name: string
}

export const TimelineBranchCodec: Codec<TimelineBranch> = {
  type: MessageType.TimelineBranch,
  name: 'TimelineBranch',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.timeline(m.ancestor)
    w.u64(m.lsn)
    w.string(m.name)
  },
  decode: r => ({
    type: MessageType.TimelineBranch,
    timeline: r.timeline(),
    ancestor: r.timeline(),
    lsn: r.lsn(),
    name: r.checked('name', checkTimelineName),
  }),
}

/** Gives the timeline another name. `timeline | string name`. → Ok */
export interface TimelineRename {
  readonly type: typeof MessageType.TimelineRename
  readonly timeline: TimelineId
  readonly name: string
}

export const TimelineRenameCodec: Codec<TimelineRename> = {
  type: MessageType.TimelineRename,
  name: 'TimelineRename',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.string(m.name)
  },
  decode: r => ({
    type: MessageType.TimelineRename,
    timeline: r.timeline(),
    name: r.checked('name', checkTimelineName),
  }),
}

/** Which timelines are branches of which. No fields. → one or more TimelineBranchesReply */
export interface TimelineBranches {
  readonly type: typeof MessageType.TimelineBranches
}

export const TimelineBranchesCodec: Codec<TimelineBranches> = {
  type: MessageType.TimelineBranches,
  name: 'TimelineBranches',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.TimelineBranches }),
}

export interface BranchOf {
  readonly timeline: TimelineId
  readonly ancestor: TimelineId
  /** Up to and including this LSN it is its ancestor. */
  readonly lsn: Lsn
}

/** `u32 count | count × { timeline | timeline ancestor | u64 lsn }`. */
export interface TimelineBranchesReply {
  readonly type: typeof MessageType.TimelineBranchesReply
  readonly branches: readonly BranchOf[]
}

export const TimelineBranchesReplyCodec: Codec<TimelineBranchesReply> = {
  type: MessageType.TimelineBranchesReply,
  name: 'TimelineBranchesReply',
  bulk: 'none',
  encode(w, m) {
    w.u32(m.branches.length)
    for (const { timeline, ancestor, lsn } of m.branches) {
      w.timeline(timeline)
      w.timeline(ancestor)
      w.u64(lsn)
    }
  },
  decode: r => ({
    type: MessageType.TimelineBranchesReply,
    branches: Array.from({ length: r.count('branches', 40) }, () => ({
      timeline: r.timeline(),
      ancestor: r.timeline(),
      lsn: r.lsn(),
    })),
  }),
}
