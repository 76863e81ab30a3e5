/** What clients may ask of a page server, and how it follows a log keeper that comes and goes. */
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { FSP_SIZE, read4 } from '../../parser/page-format.ts'
import { Connection } from '../../protocol/connection.ts'
import { parseAddress } from '../../protocol/dial.ts'
import type { PalimpsestError } from '../../protocol/errors.ts'
import { type Lsn, toWriterEpoch } from '../../protocol/ids.ts'
import {
  type FileDelete,
  type FileList,
  type FilePut,
  type GetPages,
  type LsnAtTime,
  MessageType,
  type PageHistory,
  PageStatus,
  type SpaceList,
  type TimeAtLsn,
  type TimelineDelete,
  type WaitLsn,
} from '../../protocol/messages.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'

const log = goldenLog('16k')
const random = seeded(31)
const rig = new Rig({ flushBytes: 1 << 20 })
t.teardown(() => rig.destroy())

t.test('follows through lost connections', async t => {
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  let count = 0
  for (const chunk of chunksOf(log, () => 120_000 * random())) {
    // A second of wall clock for each chunk.
    rig.wal.append(TIMELINE, chunk, 1_700_000_000_000_000 + 1_000_000 * ++count)
    if (random() < 0.1) {
      await delay(20 * random())
      rig.wal.cut()
    }
  }
  await rig.waitFor(log.end)
  const replay = goldenReplay('16k')
  replay.advanceTo()
  const { compared, differences } = await rig.compare(replay)
  t.same(differences.slice(0, 5), [], `${compared} pages`)
})

const getPages = async (ids: [number, number][], lsn: number, notModifiedSince = 0) => {
  const request: GetPages = {
    type: MessageType.GetPages,
    timeline: TIMELINE,
    lsn: lsn as Lsn,
    notModifiedSinceLsn: notModifiedSince as Lsn,
    flags: 0,
    pages: Uint32Array.from(ids.flat()),
  }
  return (await rig.connection.requestAll(request)).map(reply => reply.message)
}

t.test('pages that are not there', async t => {
  const [reply] = await getPages(
    [
      [0, 0],
      [4_000_000, 0],
      [0, 4_000_000],
    ],
    log.end,
  )
  t.same(
    [0, 1, 2].map(i => reply!.sections.status(i)),
    [PageStatus.OK, PageStatus.MISSING_SPACE, PageStatus.BEYOND_END],
  )
})

t.test('LSNs that are not there yet', async t => {
  const [reply] = await getPages([[0, 0]], log.end + 1_000_000, log.end)
  t.equal(reply!.lsn, log.end, 'answered with the newest, since the page has not changed')
  const wait: WaitLsn = {
    type: MessageType.WaitLsn,
    timeline: TIMELINE,
    lsn: (log.end + 1) as Lsn,
    timeoutMs: 50,
  }
  const late = (await rig.connection.request(wait).catch(e => e)) as PalimpsestError
  t.match(late, {
    kind: 'retry',
    message: new RegExp(`did not reach LSN ${log.end + 1} within 50 ms; it is at ${log.end}`),
  })
})

t.test('many pages come in several frames, in order', async t => {
  const replay = goldenReplay('16k')
  const pages = read4(replay.page(0, 0)!, FSP_SIZE)
  const ids = Array.from({ length: 300 }, (_, i) => [0, (i * 7) % pages] as [number, number])
  const replies = await getPages(ids, 0)
  t.ok(replies.length > 1, `${replies.length} frames`)
  t.same(
    replies.flatMap(({ sections }) => Array.from({ length: sections.count }, (_, i) => sections.page(i))),
    ids.map(([, page]) => page),
  )
})

t.test('time to LSN and back', async t => {
  const at: LsnAtTime = { type: MessageType.LsnAtTime, timeline: TIMELINE, timeUs: 1_700_000_010_500_000 }
  const { lsn, timeUs } = (await rig.connection.request(at)).message
  t.equal(timeUs, 1_700_000_010_000_000)
  const back: TimeAtLsn = { type: MessageType.TimeAtLsn, timeline: TIMELINE, lsn }
  t.equal((await rig.connection.request(back)).message.timeUs, timeUs)
  const early = (await rig.connection.request({ ...at, timeUs: 5 }).catch(e => e)) as PalimpsestError
  t.match(early, { kind: 'invalid', message: /begins later/ })
})

t.test("a page's history", async t => {
  const ask: PageHistory = {
    type: MessageType.PageHistory,
    timeline: TIMELINE,
    space: 0,
    page: 5,
    fromLsn: 0 as Lsn,
    toLsn: 0 as Lsn,
    limit: 1_000_000,
  }
  const changed: number[] = []
  const replay = goldenReplay('16k')
  replay.onMtr = (_, end, pages) => {
    if (pages.has('0:5')) changed.push(end)
  }
  replay.advanceTo()
  const replies = await rig.connection.requestAll(ask)
  const entries = replies.flatMap(reply => reply.message.entries)
  t.equal(replies[0]!.message.complete, true)
  t.same(
    entries.filter(entry => entry.kind === 'records').map(entry => entry.lsn),
    changed.reverse(),
  )
  const some = (await rig.connection.requestAll({ ...ask, limit: 3 })).flatMap(reply => reply.message.entries)
  t.same(some, entries.slice(0, 3))
})

t.test('tablespaces and files', async t => {
  const replay = goldenReplay('16k')
  replay.advanceTo()
  const spaces: SpaceList = { type: MessageType.SpaceList, timeline: TIMELINE, lsn: log.end as Lsn }
  const found = (await rig.connection.requestAll(spaces)).flatMap(reply => reply.message.spaces)
  t.same(
    found.map(space => space.space),
    [...replay.spaces.keys()].sort((a, b) => a - b),
  )
  const put = (path: string, lsn: number, text: string): FilePut => ({
    type: MessageType.FilePut,
    timeline: TIMELINE,
    lsn: lsn as Lsn,
    mtimeMs: 1,
    offset: 0,
    totalBytes: text.length,
    mode: 0o660,
    path,
  })
  for (const [lsn, text] of [
    [log.begin, 'old'],
    [log.begin + 1000, 'newer'],
  ] as const)
    await rig.connection.request(put('zoo/a.frm', lsn, text), { bulk: Buffer.from(text) })
  const remove: FileDelete = {
    type: MessageType.FileDelete,
    timeline: TIMELINE,
    lsn: log.end as Lsn,
    path: 'zoo/a.frm',
  }
  await rig.connection.request(remove)
  const list = async (lsn: number) => {
    const ask: FileList = { type: MessageType.FileList, timeline: TIMELINE, lsn: lsn as Lsn }
    return (await rig.connection.requestAll(ask)).flatMap(reply =>
      reply.message.files.map(file => file.totalBytes),
    )
  }
  t.same(
    [await list(log.begin), await list(log.begin + 1000), await list(log.end), await list(0)],
    [[3], [5], [], []],
  )
})

t.test("a writer that was replaced cannot leave a file behind: the new one's epoch counts", async t => {
  const other = await Connection.connect(parseAddress(rig.connection.address))
  t.teardown(() => other.close())
  const put = (lsn: number): FilePut => ({
    type: MessageType.FilePut,
    timeline: TIMELINE,
    lsn: lsn as Lsn,
    mtimeMs: 1,
    offset: 0,
    totalBytes: 3,
    mode: 0o660,
    path: 'zoo/b.frm',
  })
  const bulk = Buffer.from('new')
  const claim = (epoch: number) =>
    ({ type: MessageType.FileEpoch, timeline: TIMELINE, epoch: toWriterEpoch(epoch) }) as const
  const remove: FileDelete = {
    type: MessageType.FileDelete,
    timeline: TIMELINE,
    lsn: log.end as Lsn,
    path: 'zoo/b.frm',
  }
  await other.request(put(log.begin), { bulk: Buffer.from('old') })
  await other.request(claim(4))
  await rig.connection.request(claim(5))
  await rig.connection.request(put(log.begin + 1000), { bulk })
  const fenced = { kind: 'fenced', message: /has a newer writer, of epoch 5: files of epoch 4 are not taken/ }
  await t.rejects(other.request(put(log.begin + 500), { bulk }), fenced)
  await t.rejects(other.request(remove), fenced)
  await t.rejects(other.request(claim(4)), fenced)
  const nameless = await Connection.connect(parseAddress(rig.connection.address))
  t.teardown(() => nameless.close())
  await t.rejects(nameless.request(put(log.begin), { bulk }), { kind: 'fenced', message: /names no epoch/ })
  const list: FileList = { type: MessageType.FileList, timeline: TIMELINE, lsn: log.end as Lsn }
  const [reply] = await nameless.requestAll(list)
  t.match(reply!.message.files, [{ path: 'zoo/b.frm', lsn: log.begin + 1000 }], 'reading is for everybody')
  await rig.connection.request(remove)
})

t.test('a deleted timeline is gone, memory and all', async t => {
  const remove: TimelineDelete = { type: MessageType.TimelineDelete, timeline: TIMELINE }
  await rig.connection.request(remove)
  t.match(await rig.show().catch(e => e), { kind: 'invalid', message: /no timeline/ })
  t.equal(rig.server!.env.arenas.freeCount, rig.server!.env.arenas.total)
  await rig.stop()
  await rig.start()
  t.match(await rig.show().catch(e => e), { kind: 'invalid', message: /no timeline/ })
})
