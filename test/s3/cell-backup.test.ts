/** The backup of a cell of three in a real S3 service: leaders come and go, and the cell comes back from there alone. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { listBackups } from '../../server/safekeeper/backup-manifest.ts'
import { restoreBackup, verifyBackup } from '../../server/safekeeper/backup-restore.ts'
import { startSafekeeper } from '../../server/safekeeper/safekeeper.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { Listener } from '../../server/shared/listener.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { nodeClock, nodeDisk } from '../../server/shared/node-seams.ts'
import { S3ObjectStore } from '../../server/shared/object-store-s3.ts'
import { TestCell } from '../support/cell.ts'
import { lsnBytes } from '../support/lsn-bytes.ts'
import { Radosgw, radosgwSkip } from '../support/radosgw.ts'

const run = promisify(execFile)
const BIN = fileURLToPath(new URL('../../bin/palimpsest.js', import.meta.url))
const ID = '5a'.repeat(16) as TimelineId
const START = 8192 as Lsn

t.test('a cell backed up to Ceph radosgw', { skip: radosgwSkip() }, async t => {
  const ceph = await Radosgw.start(t)
  await ceph.bucket('palimpsest')
  const store = await S3ObjectStore.open({
    bucket: 'palimpsest',
    prefix: 'cells-of-a-test',
    endpoint: ceph.endpoint,
    pathStyle: true,
    credentials: ceph.credentials,
  })
  t.teardown(() => store.close())
  const cell = await TestCell.start(t, { backup: { store, intervalMs: 300 }, segmentBytes: 1 << 20 })
  await askLeader(cell.list, { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' })
  const writer = await WalWriter.open({
    safekeepers: [...cell.addresses.values()],
    timeline: ID,
    name: 'test',
    log: silentLog,
  })
  t.teardown(() => writer.close())
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 50; i++) {
      const at = writer.endLsn
      await writer.append(at, lsnBytes(at, 1 + ((i * 7919) % 20_000)))
      if (i % 10 === 0) await writer.durable()
    }
    await writer.durable()
    const { name } = await cell.leader()
    await cell.stop(name)
    await cell.startNode(name)
  }
  const endLsn = writer.endLsn

  // The backup is complete when it has all of the redo that was acknowledged.
  let cellId: string | undefined
  let rawBytes = 0
  for (let i = 0; i < 300 && rawBytes < endLsn - START; i++) {
    await new Promise(resolve => setTimeout(resolve, 100))
    cellId ??= (await listBackups(store))[0]
    if (cellId !== undefined) rawBytes = (await verifyBackup(store, cellId)).rawBytes
  }
  for (const name of [...cell.nodes.keys()]) await cell.stop(name)

  // From here on with credentials that may only read.
  const mayRead = await ceph.reader()
  const readerOptions = {
    bucket: 'palimpsest',
    prefix: 'cells-of-a-test',
    endpoint: ceph.endpoint,
    pathStyle: true,
    credentials: mayRead,
  }
  const like = (fields: object) => fields as Error
  await t.rejects(
    S3ObjectStore.open({ ...readerOptions, prefix: 'another' }),
    like({ kind: 'internal', message: /access denied/ }),
    'they do not suffice to write',
  )
  const readable = await S3ObjectStore.openToRead(readerOptions)
  t.teardown(() => readable.close())
  const before = await store.list('')
  const palimpsest = (...args: string[]) =>
    run(process.execPath, [BIN, ...args], {
      env: {
        ...process.env,
        AWS_ACCESS_KEY_ID: mayRead.accessKeyId,
        AWS_SECRET_ACCESS_KEY: mayRead.secretAccessKey,
      },
    })
  const where = ['--backup', 's3://palimpsest/cells-of-a-test', '--s3-endpoint', ceph.endpoint]
  const from = [...where, '--s3-path-style', '--json']
  const listed = JSON.parse((await palimpsest('backup', 'list', ...from)).stdout)
  t.equal(listed[0].cellId, cellId)
  const verified = JSON.parse((await palimpsest('backup', 'verify', ...from)).stdout)
  t.equal(verified.toIndex, listed[0].toIndex)
  const made = join(t.testdir(), 'made')
  const restoredBy = await palimpsest('backup', 'restore', ...from, '--data', made, '--id', 'one')
  t.equal(JSON.parse(restoredBy.stdout).toIndex, listed[0].toIndex)
  t.same(await store.list(''), before, 'and nothing was written')

  const dir = join(t.testdir(), 'restored')
  const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
  await listener.listen()
  await restoreBackup({
    store: readable,
    cellId: cellId!,
    newCellId: 'ab'.repeat(16),
    disk: nodeDisk,
    clock: nodeClock,
    log: silentLog,
    dir,
    nodeId: 'one.0123456789abcdef',
    address: listener.address,
    zone: '',
  })
  const restored = await startSafekeeper({ dataDir: dir, id: 'one', listener, log: silentLog })
  t.teardown(async () => {
    await listener.close()
    await restored.close()
  })
  const again = await WalWriter.open({
    safekeepers: [listener.localAddress],
    timeline: ID,
    name: 'again',
    log: silentLog,
  })
  t.teardown(() => again.close())
  t.equal(again.endLsn, endLsn, 'all that was acknowledged came back')
  t.ok(again.epoch > writer.epoch, 'and older writers stay out')
  await again.append(endLsn, lsnBytes(endLsn, 1000))
  await again.durable()
  const reader = restored.node.timelines.read(ID, START)
  let at: number = START
  for (let next = await reader.next(); next !== undefined; next = await reader.next()) {
    const { payload } = next
    t.ok(Buffer.from(payload).equals(lsnBytes(at, payload.length)), `redo at LSN ${at}`)
    at += payload.length
  }
  t.equal(at, endLsn + 1000)
})
