/** A page server as a process of its own: page-server-process.ts DIR WAL_PORT FLUSH_BYTES; prints its port. */
import { join } from 'node:path'
import { startPageServer } from '../../server/pageserver/index.ts'
import { Listener } from '../../server/shared/listener.ts'
import { silentLog } from '../../server/shared/log.ts'
import { LocalObjectStore } from '../../server/shared/object-store-local.ts'

const [dir, walPort, flushBytes] = process.argv.slice(2)
const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
await listener.listen()
await startPageServer({
  dataDir: join(dir!, 'pageserver'),
  store: await LocalObjectStore.open(join(dir!, 'store')),
  safekeepers: [{ host: '127.0.0.1', port: Number(walPort) }],
  listener,
  log: silentLog,
  memoryBytes: 384 << 20,
  workers: 2,
  ...(Number(flushBytes) > 0 ? { flushBytes: Number(flushBytes) } : {}),
})
process.stdout.write(`${listener.port}\n`)
