/** Who may look into what servers keep: owner and group, nobody else, even under an umask that forbids nothing. */
import { mkdirSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { LocalObjectStore } from '../../server/shared/object-store-local.ts'
import { Cluster } from '../support/cluster.ts'
import { lsnBytes } from '../support/lsn-bytes.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, TIMELINE } from '../support/page-server-rig.ts'
import { S3Service } from '../support/s3-service.ts'

// Children inherit it.
process.umask(0)

/** What in a directory others may read, write or search, or the group may write; and how much there is. */
function tooOpen(root: string): { found: string[]; files: number } {
  const found: string[] = []
  let files = 0
  const visit = (path: string): void => {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (stat === undefined) return
    if ((stat.mode & 0o027) !== 0) found.push(`${path} ${(stat.mode & 0o777).toString(8)}`)
    if (stat.isDirectory()) for (const name of readdirSync(path)) visit(join(path, name))
    else files++
  }
  visit(root)
  return { found, files }
}

t.test('a running dev cell with a page server', async t => {
  const cluster = await Cluster.start(t)
  const timeline = '5a'.repeat(16) as TimelineId
  const startLsn = 8192 as Lsn
  const create = { type: MessageType.WalCreate, timeline, startLsn, name: 'main' } as const
  await askLeader(cluster.addresses, create)
  const writer = await WalWriter.open({
    safekeepers: cluster.addresses,
    timeline,
    name: 'test',
    log: silentLog,
  })
  t.teardown(() => writer.close())
  await writer.append(startLsn, lsnBytes(startLsn, 100_000))
  await writer.durable()
  const { found, files } = tooOpen(cluster.dataDir)
  t.same(found, [])
  t.ok(files >= 5, `${files} files`)
  await cluster.kill9()
  await cluster.restart()
  t.same(tooOpen(cluster.dataDir).found, [], 'after kill -9 and a restart')
})

for (const kind of ['directory', 's3'] as const)
  t.test(`a page server with layers in ${kind}`, async t => {
    const s3 = kind === 's3' ? (await S3Service.start(t)).options() : undefined
    const rig = new Rig({ flushBytes: 1 << 20, ...(s3 && { s3 }) })
    t.teardown(() => rig.destroy())
    const log = goldenLog('16k')
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    const during = new Set<string>()
    const watch = setInterval(() => {
      for (const path of tooOpen(join(rig.dir, 'pageserver')).found) during.add(path)
    }, 20)
    t.teardown(() => clearInterval(watch))
    await rig.import(goldenReplay('16k'), log.begin)
    const chunks = chunksOf(log, () => 10_000)
    while (rig.wal.end(TIMELINE) < log.begin + 300_000) rig.wal.append(TIMELINE, chunks.next().value!)
    await rig.waitFor(rig.wal.end(TIMELINE))
    await rig.checkpoint()
    // With nothing of its own it fetches what it needs.
    await rig.stop()
    rig.loseLocalFiles()
    await rig.start()
    t.ok((await rig.pages(log.begin, [[0, 0]]))[0], 'a page is there')
    clearInterval(watch)
    t.same([...during], [], 'at work')
    // Its own directory is that of mkdtemp.
    const inside = readdirSync(rig.dir).map(name => tooOpen(join(rig.dir, name)))
    t.same(
      inside.flatMap(({ found }) => found),
      [],
    )
    t.ok(inside.reduce((sum, { files }) => sum + files, 0) >= 3, 'there were files')
  })

t.test('a directory that the operator made keeps the rights that he gave it', async t => {
  const dir = join(t.testdir(), 'his')
  mkdirSync(dir, { mode: 0o755 })

  const store = await LocalObjectStore.open(dir)
  t.teardown(() => store.close())
  await store.putIfAbsent('a/b', Buffer.from('v'))
  t.equal(statSync(dir).mode & 0o777, 0o755)
  t.same(tooOpen(join(dir, 'a')).found, [], 'what lies in it is as closed as ever')
})
