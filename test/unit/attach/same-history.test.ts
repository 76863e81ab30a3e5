// Whether a datadir continues a timeline: Aria's UUID, and the LSNs of pages.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { LSN_MAX, type Lsn, toLsn, toTimelineId } from '../../../protocol/ids.ts'
import { MessageType, PageStatus, type TimelineStatus } from '../../../protocol/messages.ts'
import {
  checkNewestPages,
  checkServerIdentity,
  checkSomePages,
  isReadableAt,
  UnchangedPages,
} from '../../../server/attach/same-history.ts'
import { scanDatadir } from '../../../server/datadir/scan.ts'
import { fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

const TIMELINE = toTimelineId('00'.repeat(16))
const UUID_A = Buffer.alloc(16, 0xaa)
const control = (uuid: Buffer): Buffer =>
  Buffer.concat([Buffer.from([0xfe, 0xfe, 0x0c, 1]), uuid, Buffer.alloc(32)])

/** A page server that has `uuid`, and pages whose LSN at an LSN is told by `lsnOf`. */
function pageServer(
  lsnOf: (space: number, page: number, at: Lsn) => number,
  uuid: Buffer | undefined = undefined,
): Connection {
  return {
    async requestAll(message: { type: number; lsn: Lsn; pages: Uint32Array }) {
      if (message.type === MessageType.FileGet) return uuid ? [{ message: {}, bulk: control(uuid) }] : []
      const count = message.pages.length / 2
      const page = (i: number): number => message.pages[2 * i + 1]!
      const sections = {
        count,
        page,
        status: () => PageStatus.OK,
        bytes: () => 8,
        freed: () => false,
        pageLsn: (i: number) => lsnOf(message.pages[2 * i]!, page(i), message.lsn),
      }
      return [{ message: { sections }, bulk: Buffer.alloc(8 * count) }]
    },
  } as unknown as Connection
}

const status = {
  summary: { timeline: TIMELINE, name: 'db', readableFromLsn: toLsn(10_000), ingestedLsn: toLsn(30_000) },
  gaps: [{ fromLsn: toLsn(15_000), toLsn: toLsn(16_000) }],
} as unknown as TimelineStatus

t.test("Aria's UUID tells servers apart", async t => {
  const dir = fakeDatadir(t.testdir(), { aria_log_control: control(UUID_A) })
  const server = (uuid?: Buffer): Connection => pageServer(() => 0, uuid)
  await checkServerIdentity(server(UUID_A), status, dir)
  await checkServerIdentity(server(), status, dir)
  await t.rejects(checkServerIdentity(server(Buffer.alloc(16, 0xbb)), status, dir), {
    kind: 'invalid',
    message: /aria_log_control: this is not the server that timeline db follows .*--same-server/,
  })
  writeFileSync(join(dir, 'aria_log_control'), 'no such thing')
  await checkServerIdentity(server(UUID_A), status, dir)
})

t.test('the newest pages must be known with their very LSN', async t => {
  // Pages 0 to 199 with LSNs from 20000 on.
  const scan = await scanDatadir(fakeDatadir(t.testdir()))
  const asked: number[] = []
  const same = pageServer((_space, page, at) => {
    asked.push(at)
    return 20_000 + page
  })
  await checkNewestPages(same, status, scan)
  t.strictSame([asked.length, asked[0]], [32, 20_199], 'the newest ones, each as of its own LSN')
  await t.rejects(
    checkNewestPages(
      pageServer((_space, page) => (page === 180 ? 12_345 : 20_000 + page)),
      status,
      scan,
    ),
    {
      kind: 'invalid',
      message: /does not continue timeline db: page 180 of tablespace 0 was changed at LSN 20180/,
    },
  )
  const importing = { ...status, summary: { ...status.summary, readableFromLsn: LSN_MAX } }
  await checkNewestPages(
    pageServer(() => 1),
    importing,
    scan,
  )
})

t.test('pages that a repair finds unchanged must be those of the timeline', async t => {
  const dir = fakeDatadir(t.testdir(), { 'd/t.ibd': fakeSpace({ space: 5, pages: 40, lsn: 25_000 }) })
  const scan = await scanDatadir(dir)
  const lsnOf = (space: number, page: number): number => (space === 5 ? 25_000 : 20_000) + page
  const history = (of: (space: number, page: number, at: Lsn) => number) => ({
    pageServer: pageServer(of),
    status,
    lsn: toLsn(25_030),
  })
  await checkSomePages(scan, history(lsnOf))
  // Pages beyond the LSN say nothing.
  await checkSomePages(
    scan,
    history((space, page) => (space === 5 && page > 30 ? 7 : lsnOf(space, page))),
  )
  await t.rejects(
    checkSomePages(
      scan,
      history((space, page) => (page === 17 ? 7 : lsnOf(space, page))),
    ),
    {
      message: /page 17 of tablespace \d was changed at LSN 2\d017, .*it has LSN 7 there/,
    },
  )

  const unchanged = new UnchangedPages()
  for (let page = 0; page < 100_000; page++) unchanged.offer(5, page, toLsn(1000 + page))
  const asked = new Set<number>()
  await unchanged.check(
    history((_space, page) => {
      asked.add(page)
      return 1000 + page
    }),
    dir,
  )
  t.ok(asked.size >= 1024 && asked.size <= 1536, 'a bounded number')
  for (let page = 99_488; page < 100_000; page++)
    if (!asked.has(page)) t.fail(`page ${page} is one of the newest`)
})

t.test(
  'a page that was freed since is not written any more: an older version of it proves nothing',
  async t => {
    const dir = fakeDatadir(t.testdir(), { 'd/t.ibd': fakeSpace({ space: 5, pages: 40, lsn: 25_000 }) })
    const scan = await scanDatadir(dir)
    const at = toLsn(25_090)
    /** Page 17 was changed again, and freed after the last LSN that was read. */
    const history = (before: number) => ({
      pageServer: pageServer((space, page, lsn) =>
        space === 5 && page === 17 ? (lsn === at ? 25_080 : before) : (space === 5 ? 25_000 : 20_000) + page,
      ),
      status,
      lsn: at,
    })
    await checkSomePages(scan, history(25_017))
    await t.rejects(checkSomePages(scan, history(25_016)), {
      kind: 'invalid',
      message: /page 17 of tablespace 5 was changed at LSN 25017, .*it has LSN 25016 there/,
    })

    const unchanged = new UnchangedPages()
    unchanged.offer(5, 17, toLsn(15_500))
    await unchanged.check(history(7), dir)
    t.pass('in a gap there is nothing to compare with')
  },
)

t.test('where a timeline can be read', async t => {
  const open = { ...status, gaps: [...status.gaps, { fromLsn: toLsn(20_000), toLsn: LSN_MAX }] }
  const readable = (lsn: number, of = status): boolean => isReadableAt(of as TimelineStatus, toLsn(lsn))
  t.strictSame(
    [9999, 10_000, 15_000, 15_001, 15_999, 16_000, 30_000, 30_001].map(lsn => readable(lsn)),
    [...[false, true, true, false, false, true, true, false]],
  )
  t.strictSame(
    [20_000, 20_001].map(lsn => readable(lsn, open as TimelineStatus)),
    [true, false],
  )
})
