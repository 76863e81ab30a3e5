import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import type { Gap } from '../../../server/pageserver/core/gaps.ts'
import { type ImportSession, ImportSessions } from '../../../server/pageserver/import-session.ts'
import type { Timeline } from '../../../server/pageserver/timeline.ts'

const lsn = (n: number) => n as Lsn

/** As much of a timeline as the beginning of an import looks at. */
function fakeTimeline() {
  const current = { startLsn: lsn(100), gaps: [{ from: lsn(100), readableFrom: lsn(150) }] as Gap[] }
  const fake = {
    name: 'shop',
    state: 'active',
    env: { nowMs: () => 0 },
    failing: false,
    manifest: {
      current,
      update: async (change: (now: typeof current) => typeof current) => {
        const next = change(fake.manifest.current)
        if (fake.failing) throw new Error('out of reach')
        fake.manifest.current = next
      },
    },
  }
  return fake
}

t.test('an import must not change the past of a branch', async t => {
  const sessions = new ImportSessions()
  const timeline = fakeTimeline() as unknown as Timeline
  await t.rejects(sessions.begin(timeline, lsn(200), 'partial', {}, [lsn(150), lsn(201)]), {
    kind: 'retry',
    message: /the past of a branch of shop that began at LSN 201/,
  })
  t.ok(await sessions.begin(timeline, lsn(201), 'partial', {}, [lsn(150), lsn(201)]))
})

t.test('an import that could not begin keeps no gap from the next one', async t => {
  const sessions = new ImportSessions()
  const timeline = fakeTimeline()
  timeline.manifest.current.gaps.push({ from: lsn(300), readableFrom: lsn(Number.MAX_SAFE_INTEGER) })
  const owner = {}
  const begin = () => sessions.begin(timeline as unknown as Timeline, lsn(400), 'partial', owner)
  timeline.failing = true
  await t.rejects(begin(), { message: /out of reach/ })
  timeline.failing = false
  t.ok((await begin()).mends(300), 'it mends what the first one was to mend')
  t.equal(timeline.manifest.current.gaps.length, 2, 'and opens none of its own')
})

t.test('of too many imports the one that nobody has used for longest is given up', async t => {
  const sessions = new ImportSessions()
  const fake = fakeTimeline()
  let now = 0
  fake.env.nowMs = () => now
  const timeline = { ...fake, log: { warn: () => {} } } as unknown as Timeline
  const begun: ImportSession[] = []
  for (; now < 40; now++) begun.push(await sessions.begin(timeline, lsn(400), 'partial', {}))
  t.throws(() => sessions.get(begun[7]!.id), { kind: 'invalid', message: /begin the import again/ })
  for (const { id } of begun.slice(8)) t.ok(sessions.get(id))
})
