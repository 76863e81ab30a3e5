/**
 * One or more samples of every message, and the frames that carry them: what the test vectors were generated from. The
 * vectors (test/fixtures/protocol/*.hex) are frozen; a sample may be added, never changed.
 */

import { crc32c } from '../../protocol/crc32c.ts'
import { FrameFlag } from '../../protocol/frame.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { MessageType as M, type Message, PageSections } from '../../protocol/messages.ts'

export interface Sample {
  readonly name: string
  readonly message: Message
  readonly bulk?: Buffer
  readonly flags?: number
}

const timeline = '00112233445566778899aabbccddeeff' as TimelineId
const otherTimeline = 'ffeeddccbbaa99887766554433221100' as TimelineId
const cellId = '0123456789abcdef0123456789abcdef'
const nodeA = { nodeId: 'a.00112233445566aa', address: '10.0.0.1:7070', zone: 'north' }
const nodeB = { nodeId: 'node-b.00112233445566bb', address: '10.0.0.2:7070', zone: '' }
const lsn = (n: number) => n as Lsn
const epoch = 3 as WriterEpoch
const BIG = lsn(Number.MAX_SAFE_INTEGER)
const redo = Buffer.from('redo redo redo!')
const reply = FrameFlag.REPLY

const pageA = Buffer.alloc(1024, 0xa1)
const pageB = Buffer.alloc(1024, 0xb2)
const crcA = crc32c(pageA, 0, 1024)
const crcB = crc32c(pageB, 0, 1024)

function sections(): PageSections {
  const s = new PageSections(3)
  s.set(0, 5, 3, 0, lsn(1_000_001), 1024, crcA, false)
  s.set(1, 5, 99, 2, lsn(0), 0, 0, false)
  s.set(2, 0, 4_294_967_295, 0, BIG, 1024, crcB, true)
  return s
}

const summary = {
  timeline,
  startLsn: lsn(12_288),
  readableFromLsn: lsn(20_000),
  ingestedLsn: lsn(30_000),
  durableLsn: lsn(25_000),
  lastWallTimeUs: 1_700_000_000_123_456,
  innodbPageSize: 16384,
  state: 'active' as const,
  name: 'main',
}

export const SAMPLES: readonly Sample[] = [
  {
    name: 'Hello',
    message: {
      type: M.Hello,
      versionMin: 1,
      versionMax: 1,
      features: 1,
      frameBytesMax: 16_777_216,
      token: '',
      software: 'palimpsest 0.1.0',
    },
  },
  {
    name: 'HelloOk',
    flags: reply,
    message: {
      type: M.HelloOk,
      version: 1,
      features: 1,
      frameBytesMax: 16_777_216,
      roles: 3,
      nodeId: 'node-1',
      software: 'palimpsest 0.1.0',
    },
  },
  { name: 'Ping', message: { type: M.Ping } },
  { name: 'Pong', flags: reply, message: { type: M.Pong, wallTimeUs: 1_700_000_000_123_456 } },
  { name: 'Cancel', message: { type: M.Cancel } },
  { name: 'Ok', flags: reply, message: { type: M.Ok } },
  {
    name: 'ErrorReply',
    flags: reply | FrameFlag.ERROR,
    message: { type: M.ErrorReply, kind: 'refresh', lsn: lsn(4711), message: 'gefällt nicht – 好' },
  },
  {
    name: 'ErrorReply-without-lsn',
    flags: reply | FrameFlag.ERROR,
    message: { type: M.ErrorReply, kind: 'internal', lsn: undefined, message: '' },
  },
  { name: 'WalCreate', message: { type: M.WalCreate, timeline, startLsn: lsn(12_288), name: 'main' } },
  { name: 'WalOpen', message: { type: M.WalOpen, timeline, writer: 'attach@db1' } },
  {
    name: 'WalOpened',
    flags: reply,
    message: { type: M.WalOpened, epoch, beginLsn: lsn(12_288), endLsn: lsn(5_000_000_000) },
  },
  {
    name: 'WalAppend',
    bulk: redo,
    message: {
      type: M.WalAppend,
      timeline,
      epoch,
      beginLsn: lsn(5_000_000_000),
      wallTimeUs: 1_700_000_000_123_456,
    },
  },
  {
    name: 'WalSkip',
    message: { type: M.WalSkip, timeline, epoch, fromLsn: lsn(100), toLsn: lsn(200), wallTimeUs: 17 },
  },
  {
    name: 'WalAppended',
    flags: reply,
    message: { type: M.WalAppended, flushedLsn: lsn(200), committedLsn: lsn(150) },
  },
  { name: 'WalRead', message: { type: M.WalRead, timeline, fromLsn: lsn(12_288), follow: true } },
  {
    name: 'WalData',
    flags: reply | FrameFlag.MORE,
    bulk: redo,
    message: { type: M.WalData, beginLsn: BIG, wallTimeUs: 1, committedLsn: lsn(2) },
  },
  {
    name: 'WalGap',
    flags: reply | FrameFlag.MORE,
    message: { type: M.WalGap, fromLsn: lsn(100), toLsn: lsn(200), wallTimeUs: 17 },
  },
  { name: 'WalReadEnd', flags: reply, message: { type: M.WalReadEnd, endLsn: lsn(300) } },
  {
    name: 'WalTrim',
    message: { type: M.WalTrim, timeline, durableLsn: lsn(250), consumer: 'page-server-1' },
  },
  { name: 'WalTrimmed', flags: reply, message: { type: M.WalTrimmed, beginLsn: lsn(200) } },
  { name: 'WalState', message: { type: M.WalState, timeline } },
  {
    name: 'WalStateReply',
    flags: reply,
    message: {
      type: M.WalStateReply,
      epoch,
      beginLsn: lsn(1),
      flushedLsn: lsn(4),
      committedLsn: lsn(3),
      bytesHeld: 134_217_728,
      lastWallTimeUs: 5,
      name: 'main',
      writer: 'attach@db1',
      lastError: '',
      consumers: [
        { consumer: 'a', durableLsn: lsn(2) },
        { consumer: 'b', durableLsn: lsn(1) },
      ],
    },
  },
  { name: 'WalList', message: { type: M.WalList } },
  {
    name: 'WalListReply',
    flags: reply,
    message: {
      type: M.WalListReply,
      timelines: [{ timeline, epoch, beginLsn: lsn(1), committedLsn: lsn(2), name: 'main' }],
    },
  },
  { name: 'WalDelete', message: { type: M.WalDelete, timeline } },
  {
    name: 'TimelineCreate',
    message: {
      type: M.TimelineCreate,
      timeline,
      startLsn: lsn(12_288),
      innodbPageSize: 16384,
      name: 'main',
      serverVersion: '10.11.18-MariaDB',
    },
  },
  { name: 'TimelineList', message: { type: M.TimelineList } },
  {
    name: 'TimelineListReply',
    flags: reply,
    message: { type: M.TimelineListReply, timelines: [summary, summary] },
  },
  { name: 'TimelineShow', message: { type: M.TimelineShow, timeline, name: '' } },
  { name: 'TimelineShow-by-name', message: { type: M.TimelineShow, timeline: undefined, name: 'main' } },
  {
    name: 'TimelineStatus',
    flags: reply,
    message: {
      type: M.TimelineStatus,
      summary: { ...summary, state: 'stopped' },
      arenaBytes: 1,
      deltaLayers: 2,
      imageLayers: 3,
      layerBytes: 4,
      spaces: 5,
      files: 6,
      serverVersion: '10.11.18-MariaDB',
      lastError: 'corrupt redo at LSN 7',
      gaps: [{ fromLsn: lsn(8), toLsn: lsn(9) }],
    },
  },
  { name: 'TimelineDelete', message: { type: M.TimelineDelete, timeline } },
  { name: 'WaitLsn', message: { type: M.WaitLsn, timeline, lsn: lsn(30_000), timeoutMs: 5000 } },
  { name: 'WaitLsnReply', flags: reply, message: { type: M.WaitLsnReply, ingestedLsn: lsn(30_001) } },
  { name: 'LsnAtTime', message: { type: M.LsnAtTime, timeline, timeUs: 1_700_000_000_123_456 } },
  { name: 'TimeAtLsn', message: { type: M.TimeAtLsn, timeline, lsn: lsn(30_000) } },
  {
    name: 'LsnTime',
    flags: reply,
    message: { type: M.LsnTime, lsn: lsn(30_000), timeUs: 1_700_000_000_123_456 },
  },
  { name: 'Checkpoint', message: { type: M.Checkpoint, timeline } },
  { name: 'CheckpointReply', flags: reply, message: { type: M.CheckpointReply, durableLsn: lsn(30_000) } },
  {
    name: 'TimelineBranch',
    message: {
      type: M.TimelineBranch,
      timeline,
      ancestor: otherTimeline,
      lsn: lsn(30_000),
      name: 'before-upgrade',
    },
  },
  { name: 'TimelineRename', message: { type: M.TimelineRename, timeline, name: 'main-2' } },
  { name: 'TimelineBranches', message: { type: M.TimelineBranches } },
  {
    name: 'TimelineBranchesReply',
    flags: reply,
    message: {
      type: M.TimelineBranchesReply,
      branches: [{ timeline, ancestor: otherTimeline, lsn: lsn(30_000) }],
    },
  },
  {
    name: 'GetPages',
    message: {
      type: M.GetPages,
      timeline,
      lsn: lsn(30_000),
      notModifiedSinceLsn: lsn(29_000),
      flags: 0,
      pages: Uint32Array.of(5, 3, 5, 99, 0, 4_294_967_295),
    },
  },
  {
    name: 'Pages',
    flags: reply,
    bulk: Buffer.concat([pageA, pageB]),
    message: { type: M.Pages, lsn: lsn(30_000), sections: sections() },
  },
  {
    name: 'Pages-none',
    flags: reply,
    message: { type: M.Pages, lsn: lsn(30_000), sections: new PageSections(0) },
  },
  {
    name: 'PageHistory',
    message: {
      type: M.PageHistory,
      timeline,
      space: 5,
      page: 3,
      fromLsn: lsn(0),
      toLsn: lsn(30_000),
      limit: 100,
    },
  },
  {
    name: 'PageHistoryReply',
    flags: reply,
    message: {
      type: M.PageHistoryReply,
      entries: [
        { lsn: lsn(300), kind: 'records', bytes: 77, recordTypes: [{ recordType: 0x620, count: 3 }] },
        { lsn: lsn(200), kind: 'image', bytes: 16384, recordTypes: [] },
      ],
      complete: false,
    },
  },
  { name: 'SpaceList', message: { type: M.SpaceList, timeline, lsn: lsn(0) } },
  {
    name: 'SpaceListReply',
    flags: reply,
    message: {
      type: M.SpaceListReply,
      lsn: lsn(30_000),
      spaces: [
        { space: 0, flags: 21, pages: 768, external: false, name: './ibdata1' },
        { space: 5, flags: 21, pages: 6, external: true, name: '/elsewhere/test/t1.ibd' },
      ],
    },
  },
  { name: 'ImportBegin', message: { type: M.ImportBegin, timeline, startLsn: lsn(12_288), kind: 'partial' } },
  { name: 'ImportBegun', flags: reply, message: { type: M.ImportBegun, session: 7 } },
  {
    name: 'ImportSpace',
    message: {
      type: M.ImportSpace,
      session: 7,
      space: 5,
      flags: 21,
      pages: 6,
      external: false,
      name: './test/t1.ibd',
    },
  },
  {
    name: 'ImportPages',
    bulk: Buffer.concat([pageA, pageB]),
    message: {
      type: M.ImportPages,
      session: 7,
      space: 5,
      pageBytes: 1024,
      pages: Uint32Array.of(0, crcA, 17, crcB),
    },
  },
  {
    name: 'ImportEnd',
    message: { type: M.ImportEnd, session: 7, readableFromLsn: lsn(20_000), spaces: Uint32Array.of(0, 5) },
  },
  {
    name: 'FilePut',
    bulk: Buffer.from('TYPE=VIEW\n'),
    message: {
      type: M.FilePut,
      timeline,
      lsn: lsn(30_000),
      mtimeMs: 1_700_000_000_123,
      offset: 0,
      totalBytes: 10,
      mode: 0o660,
      path: 'test/v@00e4.frm',
    },
  },
  { name: 'FileDelete', message: { type: M.FileDelete, timeline, lsn: lsn(30_000), path: 'test/t1.frm' } },
  { name: 'FileList', message: { type: M.FileList, timeline, lsn: lsn(0) } },
  {
    name: 'FileListReply',
    flags: reply,
    message: {
      type: M.FileListReply,
      lsn: lsn(30_000),
      files: [
        { lsn: lsn(20_000), mtimeMs: 1_700_000_000_123, totalBytes: 10, mode: 0o660, path: 'test/db.opt' },
      ],
    },
  },
  { name: 'FileGet', message: { type: M.FileGet, timeline, lsn: lsn(30_000), path: 'test/db.opt' } },
  {
    name: 'FileData',
    flags: reply | FrameFlag.MORE,
    bulk: Buffer.from('default-character-set=utf8mb4\n'),
    message: { type: M.FileData, offset: 0, totalBytes: 61, mtimeMs: 1_700_000_000_123, mode: 0o660 },
  },
  {
    name: 'FileVersions',
    message: {
      type: M.FileVersions,
      timeline,
      fromLsn: lsn(20_000),
      toLsn: lsn(40_000),
      directory: 'test',
      suffix: '.frm',
    },
  },
  {
    name: 'FileVersion',
    flags: reply | FrameFlag.MORE,
    bulk: Buffer.from('\xfe\x01\x0a\x0c', 'latin1'),
    message: {
      type: M.FileVersion,
      lsn: lsn(30_000),
      mtimeMs: 1_700_000_000_123,
      mode: 0o660,
      path: 'test/t1.frm',
    },
  },
  { name: 'FileEpoch', message: { type: M.FileEpoch, timeline, epoch } },
  {
    name: 'Redirect',
    flags: reply | FrameFlag.ERROR,
    message: { type: M.Redirect, address: '10.0.0.2:7070', message: 'node b leads the cell' },
  },
  { name: 'WalRename', message: { type: M.WalRename, timeline, name: 'other' } },
  {
    name: 'WalBranch',
    message: { type: M.WalBranch, timeline, ancestor: otherTimeline, lsn: lsn(30_000), name: 'branch' },
  },
  { name: 'WalBranched', flags: reply, message: { type: M.WalBranched, lsn: lsn(29_999) } },
  { name: 'WalConsumerDrop', message: { type: M.WalConsumerDrop, timeline, consumer: 'pageserver-1' } },
  { name: 'WalShow', message: { type: M.WalShow, timeline } },
  {
    name: 'WalShowReply',
    flags: reply,
    message: {
      type: M.WalShowReply,
      startLsn: lsn(12_288),
      beginLsn: lsn(20_000),
      committedLsn: lsn(5_000_000_000),
      epoch,
      rawBytes: 1000,
      storedBytes: 300,
      ancestor: otherTimeline,
      branches: 2,
      name: 'main',
      writer: 'attach@db1',
    },
  },
  { name: 'WalPartings', message: { type: M.WalPartings, timeline } },
  {
    name: 'WalPartingsReply',
    flags: reply,
    message: {
      type: M.WalPartingsReply,
      partings: [
        { lsn: lsn(20_000), cellId },
        { lsn: lsn(5_000_000_000), cellId: 'fedcba9876543210'.repeat(2) },
      ],
    },
  },
  { name: 'PeerHello', message: { type: M.PeerHello, cellId: '', node: nodeA } },
  {
    name: 'PeerHelloReply',
    flags: reply,
    message: {
      type: M.PeerHelloReply,
      cellId,
      node: nodeB,
      leader: nodeA.nodeId,
      leaderAddress: nodeA.address,
      term: 7,
      seed: [nodeA, nodeB],
    },
  },
  { name: 'PeerSeed', message: { type: M.PeerSeed, cellId, members: [nodeA, nodeB] } },
  { name: 'PeerSubscribe', message: { type: M.PeerSubscribe, cellId, node: nodeA, lane: 'entries' } },
  {
    name: 'PeerWelcome',
    flags: reply | FrameFlag.MORE,
    message: { type: M.PeerWelcome, node: nodeB },
  },
  {
    name: 'PeerRaft-vote',
    flags: reply | FrameFlag.MORE,
    message: {
      type: M.PeerRaft,
      message: { type: 'vote', term: 8, last: { index: 100, term: 7 }, pre: true, transfer: false },
    },
  },
  {
    name: 'PeerRaft-voteReply',
    flags: reply | FrameFlag.MORE,
    message: { type: M.PeerRaft, message: { type: 'voteReply', term: 8, pre: false, granted: true } },
  },
  {
    name: 'PeerRaft-append',
    flags: reply | FrameFlag.MORE,
    message: {
      type: M.PeerRaft,
      message: { type: 'append', term: 8, prev: { index: 100, term: 7 }, commit: 99, round: 12 },
    },
  },
  {
    name: 'PeerRaft-appendReply',
    flags: reply | FrameFlag.MORE,
    message: {
      type: M.PeerRaft,
      message: {
        type: 'appendReply',
        term: 8,
        ok: false,
        paused: true,
        match: 0,
        rejected: 100,
        hint: { index: 90, term: 6 },
        round: 12,
      },
    },
  },
  {
    name: 'PeerRaft-timeoutNow',
    flags: reply | FrameFlag.MORE,
    message: { type: M.PeerRaft, message: { type: 'timeoutNow', term: 8 } },
  },
  {
    name: 'PeerAppend',
    flags: reply | FrameFlag.MORE,
    bulk: Buffer.concat([redo, Buffer.from('{"do":"delete"}')]),
    message: {
      type: M.PeerAppend,
      term: 8,
      prev: { index: 100, term: 7 },
      commit: 99,
      round: 12,
      entries: [
        {
          term: 8,
          kind: 'redo',
          dropped: false,
          timeline,
          epoch,
          beginLsn: lsn(5_000_000_000),
          endLsn: lsn(5_000_000_015),
          wallTimeUs: 1_700_000_000_123_456,
          payloadBytes: 15,
          payloadCrc: crc32c(redo, 0, 15),
        },
        {
          term: 8,
          kind: 'command',
          dropped: false,
          timeline: undefined,
          epoch: 0 as WriterEpoch,
          beginLsn: lsn(0),
          endLsn: lsn(0),
          wallTimeUs: 17,
          payloadBytes: 15,
          payloadCrc: crc32c(Buffer.from('{"do":"delete"}'), 0, 15),
        },
        {
          term: 8,
          kind: 'gap',
          dropped: false,
          timeline,
          epoch,
          beginLsn: lsn(5_000_000_015),
          endLsn: lsn(5_000_001_000),
          wallTimeUs: 18,
          payloadBytes: 0,
          payloadCrc: 0,
        },
      ],
    },
  },
  {
    name: 'PeerSnapshot',
    flags: reply | FrameFlag.MORE,
    bulk: Buffer.from('{"version":1}'),
    message: { type: M.PeerSnapshot, term: 8, last: { index: 90, term: 6 }, offset: 0, totalBytes: 13 },
  },
  { name: 'PeerFetch', message: { type: M.PeerFetch, cellId, first: 70, last: 90, bytesMax: 1_048_576 } },
  {
    name: 'PeerFetched',
    flags: reply,
    bulk: redo,
    message: {
      type: M.PeerFetched,
      beginIndex: 12,
      appliedIndex: 400,
      entries: [
        {
          isVoid: true,
          entry: {
            term: 8,
            kind: 'redo',
            dropped: false,
            timeline,
            epoch,
            beginLsn: lsn(5_000_000_000),
            endLsn: lsn(5_000_000_000 + redo.length),
            wallTimeUs: 16,
            payloadBytes: redo.length,
            payloadCrc: crc32c(redo, 0, redo.length),
          },
        },
      ],
    },
  },
  { name: 'CellStatus', message: { type: M.CellStatus } },
  {
    name: 'CellStatusReply',
    flags: reply,
    message: {
      type: M.CellStatusReply,
      nodeId: nodeA.nodeId,
      cellId,
      role: 'leader',
      zone: 'north',
      term: 8,
      leader: nodeA.nodeId,
      leaderAddress: nodeA.address,
      leaderSilentMs: 0,
      beginIndex: 1,
      lastIndex: 103,
      flushedIndex: 102,
      commitIndex: 101,
      appliedIndex: 101,
      diskBytes: 67_108_864,
      rawBytes: 1000,
      storedBytes: 300,
      timelines: 2,
      writable: true,
      lastError: '',
      members: [
        { ...nodeA, kind: 'voter', matchIndex: 103, silentMs: 0 },
        { ...nodeB, kind: 'learner', matchIndex: 90, silentMs: undefined },
      ],
    },
  },
  { name: 'MemberAdd', message: { type: M.MemberAdd, name: 'd', address: '10.0.0.4:7070' } },
  { name: 'MemberRemove', message: { type: M.MemberRemove, name: 'c' } },
  {
    name: 'MemberReplace',
    message: { type: M.MemberReplace, old: 'c', name: 'd', address: '10.0.0.4:7070' },
  },
  { name: 'TransferLeadership', message: { type: M.TransferLeadership, name: 'b' } },
]
