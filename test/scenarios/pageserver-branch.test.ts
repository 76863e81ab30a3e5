/** Branches: their past is the ancestor's, their future their own, whatever the ancestor does meanwhile. */
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'

const BRANCH = '11111111111111111111111111111111' as TimelineId
const TWIG = '22222222222222222222222222222222' as TimelineId

t.test('a branch, and a branch of it, with redo of their own', async t => {
  const log = goldenLog('16k')
  const random = seeded(11)
  const rig = new Rig({ flushBytes: 512 << 10 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  // The ancestor goes to its end first: what it has beyond the branch must not show there.
  const chunks = [...chunksOf(log, () => 200_000 * random())]
  for (const chunk of chunks) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(log.end)

  // Where chunks begin, so that the branches' logs can be made of the same redo.
  const starts: number[] = []
  let lsn = log.begin
  for (const chunk of chunks) {
    starts.push(lsn)
    lsn += chunk.length
  }
  const place = (part: number) => Math.floor(chunks.length * part)
  const [branchAt, twigAt] = [place(0.4), place(0.6)]
  const branch = async (timeline: TimelineId, ancestor: TimelineId, at: number, name: string) => {
    rig.wal.create(timeline, at)
    await rig.connection.request({
      type: MessageType.TimelineBranch,
      timeline,
      ancestor,
      lsn: at as Lsn,
      name,
    })
  }
  const feed = async (timeline: TimelineId, from: number, to: number) => {
    for (let i = from; i < to; i++) {
      rig.wal.append(timeline, chunks[i]!)
      if (i % 3 === 0) await rig.waitFor(rig.wal.end(timeline), 60_000, timeline)
    }
    await rig.waitFor(rig.wal.end(timeline), 60_000, timeline)
  }
  const compareAt = async (timeline: TimelineId, places: number[], when: string) => {
    const replay = goldenReplay('16k')
    for (const at of places) {
      replay.advanceTo(at >= starts.length ? log.end : starts[at]!)
      const { compared, differences } = await rig.compare(replay, timeline)
      t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn} ${when}`)
    }
  }

  await branch(BRANCH, TIMELINE, starts[branchAt]!, 'branch')
  await branch(BRANCH, TIMELINE, starts[branchAt]!, 'branch')
  await compareAt(BRANCH, [place(0.2), branchAt], 'of a new branch')
  await feed(BRANCH, branchAt, place(0.7))
  await compareAt(BRANCH, [place(0.3), branchAt, place(0.5), place(0.7)], 'of a branch with redo')

  await branch(TWIG, BRANCH, starts[twigAt]!, 'twig')
  await feed(TWIG, twigAt, chunks.length)
  await compareAt(
    TWIG,
    [place(0.2), place(0.5), twigAt, place(0.8), chunks.length],
    'of a branch of a branch',
  )
  const shown = await rig.connection.requestAll({ type: MessageType.TimelineBranches })
  t.same(
    shown.flatMap(({ message }) => message.branches),
    [
      { timeline: BRANCH, ancestor: TIMELINE, lsn: starts[branchAt] },
      { timeline: TWIG, ancestor: BRANCH, lsn: starts[twigAt] },
    ],
  )

  // Below the branch's beginning it is the ancestor that is branched.
  const old = '33333333333333333333333333333333' as TimelineId
  await branch(old, TWIG, starts[place(0.1)]!, 'old')
  await compareAt(old, [place(0.1)], 'of a branch below the beginning of what it was asked of')

  for (const timeline of [TIMELINE, BRANCH, TWIG])
    await rig.connection.request({ type: MessageType.Checkpoint, timeline }, { deadlineMs: 60_000 })
  await rig.server!.timelines.compacted()
  await compareAt(BRANCH, [place(0.2), place(0.5), place(0.7)], 'of a branch after compactions')
  await compareAt(TWIG, [place(0.3), place(0.65), chunks.length], 'of a branch of a branch after compactions')

  await t.rejects(
    rig.connection.request({ type: MessageType.TimelineDelete, timeline: BRANCH }),
    { kind: 'invalid', message: /branches \(twig\)/ },
    'an ancestor is not deleted',
  )
  await t.rejects(
    rig.connection.request({ type: MessageType.TimelineRename, timeline: BRANCH, name: 'twig' }),
    { kind: 'invalid', message: /named twig already/ },
  )
  await rig.connection.request({ type: MessageType.TimelineRename, timeline: BRANCH, name: 'renamed' })

  await rig.stop()
  await rig.start()
  await compareAt(BRANCH, [place(0.2), branchAt, place(0.45), place(0.7)], 'of a branch after a restart')
  await compareAt(TWIG, [place(0.2), place(0.62), chunks.length], 'of a branch of a branch after a restart')
  const { message } = await rig.connection.request({
    type: MessageType.TimelineShow,
    timeline: undefined,
    name: 'renamed',
  })
  t.equal(message.summary.timeline, BRANCH)
  await rig.connection.request({ type: MessageType.TimelineDelete, timeline: TWIG })
  await rig.connection.request({ type: MessageType.TimelineDelete, timeline: BRANCH })
  await compareAt(TIMELINE, [place(0.5), chunks.length], 'of the ancestor, which lost nothing')
})

t.test(
  'who reads a branch keeps the layers of its ancestor that a compaction replaces meanwhile',
  async t => {
    const log = goldenLog('16k')
    const rig = new Rig({ flushBytes: 128 << 10 })
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    const replay = goldenReplay('16k')
    await rig.import(replay, log.begin)
    const chunks = [...chunksOf(log, () => 130_000)]
    for (const chunk of chunks.slice(0, 4)) {
      rig.wal.append(TIMELINE, chunk)
      await rig.waitFor(rig.wal.end(TIMELINE))
      await rig.checkpoint()
    }
    const lsn = rig.wal.end(TIMELINE) as Lsn
    rig.wal.create(BRANCH, lsn)
    const request = { timeline: BRANCH, ancestor: TIMELINE, lsn, name: 'branch' }
    await rig.connection.request({ type: MessageType.TimelineBranch, ...request })
    const { timelines, env } = rig.server!
    const ancestor = timelines.get(TIMELINE)
    const snapshot = timelines.get(BRANCH).snapshot(lsn)
    const { space, page } = ancestor.layers.find(layer => layer.kind === 'delta')!.first!
    t.type(snapshot.request(space, page), 'object')
    const held = snapshot.entries.filter(entry => entry.kind === 'delta').map(entry => entry.key)
    t.not(held.length, 0, 'it reads what the ancestor has')
    for (const chunk of chunks.slice(4)) {
      rig.wal.append(TIMELINE, chunk)
      await rig.waitFor(rig.wal.end(TIMELINE))
      await rig.checkpoint()
    }
    const isNamed = (key: string) => ancestor.layers.some(layer => layer.key === key)
    const exists = async (key: string) => (await env.store.head(key)) !== undefined
    while (held.some(isNamed)) await delay(10)
    for (const key of held) t.ok(await exists(key), 'replaced, and still there')
    snapshot.release()
    for (const key of held) while (await exists(key)) await delay(10)
    replay.advanceTo(lsn)
    t.same((await rig.compare(replay, BRANCH)).differences.slice(0, 5), [])
  },
)
