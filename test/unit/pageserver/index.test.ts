import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { startPageServer } from '../../../server/pageserver/index.ts'
import { Listener } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

t.test('one process for each data directory: what another is writing there is left alone', async t => {
  const dataDir = t.testdir()
  const scratch = join(dataDir, 'scratch', 'layer')
  mkdirSync(join(dataDir, 'scratch'))
  writeFileSync(scratch, 'under way')
  const other = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' })
  t.teardown(() => other.kill())
  await once(other, 'spawn')
  writeFileSync(join(dataDir, 'LOCK'), `${other.pid} \n`)
  const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
  const start = () =>
    startPageServer({
      dataDir,
      store: new MemoryObjectStore(),
      safekeepers: [{ host: '127.0.0.1', port: 1 }],
      listener,
      log: silentLog,
      memoryBytes: 256 << 20,
      workers: 1,
    })
  await t.rejects(start(), new RegExp(`in use by process ${other.pid}`))
  t.ok(existsSync(scratch))
  const gone = once(other, 'exit')
  other.kill()
  await gone
  const server = await start()
  t.notOk(existsSync(scratch))
  await server.close()
  t.notOk(existsSync(join(dataDir, 'LOCK')))
})
