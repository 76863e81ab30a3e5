/**
 * All messages: the table of codecs, and which answer belongs to which request. Each family has its own file, where the
 * grammar stands above encoder and decoder. Grammar: little-endian; `timeline` is 16 bytes; `string` is a u16 length and
 * so many bytes of UTF-8 without NUL; an LSN is a u64 below 2^53; nothing may follow the last field.
 */
import type { AnyMessage, Codec } from './codec.ts'
import type { ByteReader, ByteWriter } from './cursor.ts'
import { MalformedError } from './errors.ts'
import * as branch from './messages-branch.ts'
import * as cell from './messages-cell.ts'
import * as common from './messages-common.ts'
import * as imports from './messages-import.ts'
import * as page from './messages-page.ts'
import * as peer from './messages-peer.ts'
import * as repair from './messages-repair.ts'
import * as timeline from './messages-timeline.ts'
import * as wal from './messages-wal.ts'
import * as walRead from './messages-wal-read.ts'
import * as walWrite from './messages-wal-write.ts'

export type { AnyMessage, BulkKind, Codec, SectionVisitor } from './codec.ts'
export { MessageType } from './message-types.ts'
export * from './messages-branch.ts'
export * from './messages-cell.ts'
export * from './messages-common.ts'
export * from './messages-import.ts'
export * from './messages-page.ts'
export * from './messages-peer.ts'
export * from './messages-repair.ts'
export * from './messages-timeline.ts'
export * from './messages-wal.ts'
export * from './messages-wal-read.ts'
export * from './messages-wal-write.ts'

/** Every request and the messages that answer it (an ErrorReply apart, which may answer any). */
export interface Replies {
  Ping: [common.Ping, common.Pong]
  WalCreate: [wal.WalCreate, common.Ok]
  WalOpen: [walWrite.WalOpen, walWrite.WalOpened]
  WalAppend: [walWrite.WalAppend, walWrite.WalAppended]
  WalSkip: [walWrite.WalSkip, walWrite.WalAppended]
  WalTrim: [walRead.WalTrim, walRead.WalTrimmed]
  WalState: [wal.WalState, wal.WalStateReply]
  WalList: [wal.WalList, wal.WalListReply]
  WalDelete: [wal.WalDelete, common.Ok]
  WalRename: [wal.WalRename, common.Ok]
  WalBranch: [wal.WalBranch, wal.WalBranched]
  WalConsumerDrop: [walRead.WalConsumerDrop, common.Ok]
  WalShow: [wal.WalShow, wal.WalShowReply]
  WalPartings: [wal.WalPartings, wal.WalPartingsReply]
  WalRead: [walRead.WalRead, walRead.WalData | walRead.WalGap | walRead.WalReadEnd]
  TimelineCreate: [timeline.TimelineCreate, common.Ok]
  TimelineList: [timeline.TimelineList, timeline.TimelineListReply]
  TimelineShow: [timeline.TimelineShow, timeline.TimelineStatus]
  TimelineDelete: [timeline.TimelineDelete, common.Ok]
  TimelineBranch: [branch.TimelineBranch, common.Ok]
  TimelineRename: [branch.TimelineRename, common.Ok]
  TimelineBranches: [branch.TimelineBranches, branch.TimelineBranchesReply]
  GetPages: [page.GetPages, page.Pages]
  PageHistory: [page.PageHistory, page.PageHistoryReply]
  SpaceList: [page.SpaceList, page.SpaceListReply]
  WaitLsn: [timeline.WaitLsn, timeline.WaitLsnReply]
  LsnAtTime: [timeline.LsnAtTime, timeline.LsnTime]
  TimeAtLsn: [timeline.TimeAtLsn, timeline.LsnTime]
  Checkpoint: [timeline.Checkpoint, timeline.CheckpointReply]
  ImportBegin: [imports.ImportBegin, imports.ImportBegun]
  ImportSpace: [imports.ImportSpace, common.Ok]
  ImportPages: [imports.ImportPages, common.Ok]
  ImportEnd: [imports.ImportEnd, common.Ok]
  FilePut: [imports.FilePut, common.Ok]
  FileDelete: [imports.FileDelete, common.Ok]
  FileList: [imports.FileList, imports.FileListReply]
  FileGet: [imports.FileGet, imports.FileData]
  PeerHello: [peer.PeerHello, peer.PeerHelloReply]
  PeerSeed: [peer.PeerSeed, common.Ok]
  PeerFetch: [repair.PeerFetch, repair.PeerFetched]
  PeerSubscribe: [peer.PeerSubscribe, peer.PeerWelcome | peer.PeerRaft | peer.PeerAppend | peer.PeerSnapshot]
  CellStatus: [cell.CellStatus, cell.CellStatusReply]
  MemberAdd: [cell.MemberAdd, common.Ok]
  MemberRemove: [cell.MemberRemove, common.Ok]
  MemberReplace: [cell.MemberReplace, common.Ok]
  TransferLeadership: [cell.TransferLeadership, common.Ok]
  FileVersions: [imports.FileVersions, imports.FileVersion]
  FileEpoch: [imports.FileEpoch, common.Ok]
}

export type Request = Replies[keyof Replies][0]
export type ReplyMessage = Replies[keyof Replies][1]
/** The answer's type for a request's. */
export type ReplyOf<R extends Request> = Extract<Replies[keyof Replies], [{ type: R['type'] }, unknown]>[1]
export type Message =
  | Request
  | ReplyMessage
  | common.Hello
  | common.HelloOk
  | common.Cancel
  | common.ErrorReply
  | common.Redirect

const CODECS: readonly Pick<Codec<AnyMessage>, 'type' | 'name' | 'bulk'>[] = [
  common.HelloCodec,
  common.HelloOkCodec,
  common.PingCodec,
  common.PongCodec,
  common.CancelCodec,
  common.OkCodec,
  common.ErrorReplyCodec,
  common.RedirectCodec,
  wal.WalCreateCodec,
  walWrite.WalOpenCodec,
  walWrite.WalOpenedCodec,
  walWrite.WalAppendCodec,
  walWrite.WalSkipCodec,
  walWrite.WalAppendedCodec,
  walRead.WalReadCodec,
  walRead.WalDataCodec,
  walRead.WalGapCodec,
  walRead.WalReadEndCodec,
  walRead.WalTrimCodec,
  walRead.WalTrimmedCodec,
  wal.WalStateCodec,
  wal.WalStateReplyCodec,
  wal.WalListCodec,
  wal.WalListReplyCodec,
  wal.WalDeleteCodec,
  wal.WalRenameCodec,
  wal.WalBranchCodec,
  wal.WalBranchedCodec,
  walRead.WalConsumerDropCodec,
  wal.WalShowCodec,
  wal.WalShowReplyCodec,
  wal.WalPartingsCodec,
  wal.WalPartingsReplyCodec,
  timeline.TimelineCreateCodec,
  timeline.TimelineListCodec,
  timeline.TimelineListReplyCodec,
  timeline.TimelineShowCodec,
  timeline.TimelineStatusCodec,
  timeline.TimelineDeleteCodec,
  timeline.WaitLsnCodec,
  timeline.WaitLsnReplyCodec,
  timeline.LsnAtTimeCodec,
  timeline.TimeAtLsnCodec,
  timeline.LsnTimeCodec,
  timeline.CheckpointCodec,
  timeline.CheckpointReplyCodec,
  branch.TimelineBranchCodec,
  branch.TimelineRenameCodec,
  branch.TimelineBranchesCodec,
  branch.TimelineBranchesReplyCodec,
  page.GetPagesCodec,
  page.PagesCodec,
  page.PageHistoryCodec,
  page.PageHistoryReplyCodec,
  page.SpaceListCodec,
  page.SpaceListReplyCodec,
  imports.ImportBeginCodec,
  imports.ImportBegunCodec,
  imports.ImportSpaceCodec,
  imports.ImportPagesCodec,
  imports.ImportEndCodec,
  imports.FilePutCodec,
  imports.FileDeleteCodec,
  imports.FileListCodec,
  imports.FileListReplyCodec,
  imports.FileGetCodec,
  imports.FileDataCodec,
  peer.PeerHelloCodec,
  peer.PeerHelloReplyCodec,
  peer.PeerSeedCodec,
  peer.PeerSubscribeCodec,
  peer.PeerWelcomeCodec,
  peer.PeerRaftCodec,
  peer.PeerAppendCodec,
  peer.PeerSnapshotCodec,
  repair.PeerFetchCodec,
  repair.PeerFetchedCodec,
  cell.CellStatusCodec,
  cell.CellStatusReplyCodec,
  cell.MemberAddCodec,
  cell.MemberRemoveCodec,
  cell.MemberReplaceCodec,
  cell.TransferLeadershipCodec,
  imports.FileVersionsCodec,
  imports.FileEpochCodec,
  imports.FileVersionCodec,
]

const BY_TYPE = new Map<number, Codec<AnyMessage>>()
for (const codec of CODECS) BY_TYPE.set(codec.type, codec as unknown as Codec<AnyMessage>)

export const ALL_CODECS: readonly Codec<AnyMessage>[] = [...BY_TYPE.values()]

export function codecOf(type: number): Codec<AnyMessage> | undefined {
  return BY_TYPE.get(type)
}

/** For texts: the message's name, or its number if it has none. */
export function messageName(type: number): string {
  return BY_TYPE.get(type)?.name ?? `message 0x${type.toString(16).padStart(4, '0')}`
}

/** Writes the fields of any message. */
export function encodeMessage(w: ByteWriter, message: AnyMessage): Codec<AnyMessage> {
  const codec = BY_TYPE.get(message.type)
  if (codec === undefined) throw new MalformedError(`message type ${message.type} is unknown`)
  codec.encode(w, message)
  return codec
}

/** Reads all fields of a message and refuses trailing bytes. */
export function decodeMessage(type: number, r: ByteReader): Message {
  const codec = BY_TYPE.get(type)
  if (codec === undefined) throw new MalformedError(`${messageName(type)} is unknown to this version`)
  try {
    const message = codec.decode(r)
    r.finish('message')
    return message as Message
  } catch (error) {
    if (error instanceof MalformedError) throw new MalformedError(`${codec.name}: ${error.message}`)
    throw error
  }
}
