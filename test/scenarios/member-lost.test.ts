/** Nodes that run on although they should not: one that was removed while it was away, and one whose folder was copied. */
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { formatAddress } from '../../protocol/dial.ts'
import { MessageType } from '../../protocol/messages.ts'
import { startSafekeeper } from '../../server/safekeeper/safekeeper.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { Listener } from '../../server/shared/listener.ts'
import { createLog, silentLog } from '../../server/shared/log.ts'
import { TestCell } from '../support/cell.ts'
import { caughtUp, newWriter, until, write } from '../support/cell-writer.ts'

interface Line {
  readonly level: number
  readonly node?: string
  readonly msg: string
  readonly addresses?: readonly string[]
}

const WARN = 40

/** A log, and its warnings that match. */
function listening() {
  const lines: Line[] = []
  const stream = { write: (text: string) => lines.push(JSON.parse(text)) }
  const log = createLog({ name: 'cell', level: 'info', stream })
  return {
    log,
    warnings: (what: RegExp) => lines.filter(({ level, msg }) => level === WARN && what.test(msg)),
  }
}

t.test('one that was removed while it was away says so, until it is added again', async t => {
  const { log, warnings } = listening()
  const cell = await TestCell.start(t, { log })
  const writer = await newWriter(t, cell)
  await write(writer, 10_000)
  const leader = (await cell.leader()).name
  const [out, stays] = ['a', 'b', 'c'].filter(name => name !== leader) as [string, string]
  await cell.stop(out)
  await askLeader(cell.list, { type: MessageType.MemberRemove, name: out })
  await write(writer, 10_000)
  const { node } = (await cell.startNode(out)).safekeeper
  const says =
    /^this node is no longer a member of the cell \(removed by entry \d+, as (.) at .* says\): stop it/
  await until('it says so', () => says.test(node.status().lastError))
  t.match(node.unready, says)
  t.same(
    warnings(says).map(line => line.node),
    [out],
    'once',
  )
  t.equal(node.status().lastError, warnings(says)[0]!.msg)
  // Whoever asks it is told the same, and may ask others.
  const at = [cell.addresses.get(out)!]
  const refused = askLeader(at, { type: MessageType.MemberRemove, name: stays })
  await t.rejects(refused, { kind: 'retry', message: /no longer a member/ } as unknown as Error)
  // With the folder that it has.
  const address = formatAddress(cell.addresses.get(out)!)
  await askLeader(
    cell.list.filter(({ port }) => port !== at[0]!.port),
    { type: MessageType.MemberAdd, name: out, address },
    { request: { deadlineMs: 30_000 } },
  )
  await until('it takes that back', () => node.status().lastError === '' && node.unready === undefined)
  await write(writer, 10_000)
  await caughtUp(cell, writer)
})

t.test('one that was there when it was removed says so, too', async t => {
  const { log, warnings } = listening()
  const cell = await TestCell.start(t, { log })
  const leader = (await cell.leader()).name
  const [out] = ['a', 'b', 'c'].filter(name => name !== leader) as [string]
  const { node } = cell.nodes.get(out)!.safekeeper
  await askLeader(cell.list, { type: MessageType.MemberRemove, name: out })
  const says = /^this node is no longer a member of the cell \(removed (at|by) entry \d+, as/
  await until('it says so', () => says.test(node.unready ?? ''))
  t.equal(warnings(says).length, 1)
})

t.test('two processes from copies of one folder: the others name both', async t => {
  const { log, warnings } = listening()
  const cell = await TestCell.start(t, { log })
  const writer = await newWriter(t, cell)
  await write(writer, 10_000)
  const leader = (await cell.leader()).name
  const [twin] = ['a', 'b', 'c'].filter(name => name !== leader) as [string]
  const others = ['a', 'b', 'c'].filter(name => name !== twin)
  await cell.stop(twin)
  const dataDir = join(cell.dir, 'copy')
  cpSync(join(cell.dir, twin), dataDir, { recursive: true })
  const first = formatAddress(cell.addresses.get(twin)!)
  await cell.startNode(twin)
  const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
  await listener.listen()
  const copy = await startSafekeeper({
    dataDir,
    id: twin,
    address: listener.address,
    join: cell.list,
    listener,
    log: silentLog,
  })
  t.teardown(async () => {
    await listener.close()
    await copy.close()
  })
  const says = /^.\.[0-9a-f]{16} runs twice, at /
  for (const name of others)
    await until(`${name} sees it`, () => says.test(cell.nodes.get(name)!.safekeeper.node.status().lastError))
  const told = warnings(says)
  t.same(told.map(({ node }) => node).sort(), others, 'each once')
  const addresses = [first, listener.address].sort()
  for (const line of told) t.same(line.addresses, addresses)
})
