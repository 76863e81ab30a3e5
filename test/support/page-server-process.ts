/** A page server as a process of its own: page-server-process.ts DIR WAL_PORT OPTIONS; prints its port. */
import { join } from 'node:path'
import { startPageServer } from '../../server/pageserver/index.ts'
import { Listener } from '../../server/shared/listener.ts'
import { silentLog } from '../../server/shared/log.ts'
import { openStore, type RigOptions } from './page-server-rig.ts'

const [dir, walPort, json] = process.argv.slice(2)
const { flushBytes, s3, cacheBytes } = JSON.parse(json!) as RigOptions
const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
await listener.listen()
await startPageServer({
  dataDir: join(dir!, 'pageserver'),
  store: await openStore(dir!, s3),
  safekeepers: [{ host: '127.0.0.1', port: Number(walPort) }],
  listener,
  log: silentLog,
  memoryBytes: 384 << 20,
  workers: 2,
  flushBytes,
  cacheBytes,
})
process.stdout.write(`${listener.port}\n`)
