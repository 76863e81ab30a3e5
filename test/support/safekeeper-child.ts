/** A safekeeper as a process of its own: DIR SEGMENT_BYTES [PORT]. Prints its port; ends when it is killed. */
import { startSafekeeper } from '../../server/safekeeper/safekeeper.ts'
import { Listener } from '../../server/shared/listener.ts'
import { createLog } from '../../server/shared/log.ts'

const [dataDir, segmentBytes, port = '0'] = process.argv.slice(2)
const log = createLog({ name: 'safekeeper', level: 'warn' })
const listener = new Listener({ host: '127.0.0.1', port: Number(port), log })
await startSafekeeper({ dataDir: dataDir!, listener, log, segmentBytes: Number(segmentBytes) })
await listener.listen()
process.stdout.write(`ready ${listener.port}\n`)
