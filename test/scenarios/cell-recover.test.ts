/** Two of three disks are lost for good: the survivor's folder becomes a cell of its own, which has all that it had, and grows again. */
import { execFile } from 'node:child_process'
import { cpSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import { formatAddress } from '../../protocol/dial.ts'
import { MessageType } from '../../protocol/messages.ts'
import { createLog, type Log, silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { TestCell } from '../support/cell.ts'
import { caughtUp, ID, newWriter, readFrom, until, write } from '../support/cell-writer.ts'

const CLI = join(import.meta.dirname, '..', '..', 'bin', 'palimpsest.js')

function run(...args: readonly string[]): Promise<{ code: number; out: string; err: string }> {
  return new Promise(resolve => {
    execFile(process.execPath, [CLI, ...args], (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err })
    })
  })
}

interface LogLine {
  readonly node: string
  readonly level: number
  readonly msg: string
  readonly reason?: string
  readonly state?: string
}

/** What nodes that are started from now on say at level warn. */
function warningsOf(cell: TestCell): LogLine[] {
  const lines: LogLine[] = []
  const stream = { write: (text: string) => lines.push(JSON.parse(text) as LogLine) }
  Object.assign(cell, { log: createLog({ name: 'cell', level: 'warn', stream }) satisfies Log })
  return lines
}

t.test('a survivor becomes a cell of its own, and grows again', { timeout: 240_000 }, async t => {
  const cell = await TestCell.start(t, { segmentBytes: 256 * 1024 })
  const writer = await newWriter(t, cell)
  await write(writer, 1_500_000)
  await caughtUp(cell, writer)
  const leader = (await cell.leader()).name
  const [survivor, ...lost] = ['a', 'b', 'c'].sort((x, y) => Number(x === leader) - Number(y === leader))
  const old = (await cell.leader()).safekeeper.node.status()
  const dir = join(cell.dir, survivor!)
  const running = await run('member', 'recover', '--data', dir)
  t.match(running, { code: 1, err: /running \(process \d+\): stop it/ })
  // What the survivor never had is acknowledged by the others, and then these are lost.
  await cell.stop(survivor!)
  const kept = writer.flushedLsn
  await write(writer, 30_000)
  const acknowledged = writer.flushedLsn
  for (const name of lost) await cell.stop(name)
  const copyOf = (name: string) => join(cell.dir, `${name}-old`)
  cpSync(join(cell.dir, lost[0]!), copyOf(lost[0]!), { recursive: true })

  // The others' disks are still there: theirs is the newer log.
  const both = await run('member', 'recover', '--data', dir, '--data', join(cell.dir, lost[1]!), '--json')
  t.equal(JSON.parse(both.out).newest, join(cell.dir, lost[1]!))
  for (const name of lost) cell.wipe(name)

  const warnings = warningsOf(cell)
  for (const name of ['a', 'b', 'c']) await cell.startNode(name)
  await until('they tell what is the matter', () =>
    lost.every(name =>
      warnings.some(({ node, state }) => node === name && state?.includes('"palimpsest member recover')),
    ),
  )
  const told = warnings.find(({ state }) => state?.includes('member recover'))!.state!
  t.match(
    told,
    new RegExp(`${[...lost].sort().join(', ')}, a majority of its 3 first members.* stop ${survivor}, run`),
  )
  for (const name of ['a', 'b', 'c']) await cell.stop(name)

  const look = await run('member', 'recover', '--data', dir)
  t.match(look, { code: 0, out: /nothing was changed/ })
  t.match(look.out, new RegExp(`timeline main \\(${ID}\\): up to LSN ${kept}`))
  t.match(await run('member', 'recover', '--data', dir, '--data', dir, '--yes'), {
    code: 2,
    err: /one --data/,
  })
  const done = await run('member', 'recover', '--data', dir, '--yes', '--json')
  t.equal(done.code, 0, done.err)
  const { cellId, recoveredFrom } = JSON.parse(done.out) as { cellId: string; recoveredFrom: string }
  t.equal(recoveredFrom, old.cellId)
  t.not(cellId, old.cellId)

  await cell.startNode(survivor!)
  const { node } = (await cell.leader()).safekeeper
  t.match(node.status(), { cellId, members: [{ kind: 'voter' }] })
  t.ok(node.status().term > old.term)
  t.equal(await readFrom(cell, survivor!), kept, 'all that it had, and nothing else')
  await until('the writer has given up', () => writer.failed !== undefined)
  t.match(writer.failed, {
    kind: 'fenced',
    message: new RegExp(
      `ends at LSN ${kept} .* had acknowledged it up to LSN ${acknowledged}.*member-recover`,
    ),
  })

  for (const name of lost) {
    cell.wipe(name)
    await cell.startNode(name, { join: [cell.addresses.get(survivor!)!] })
    const address = formatAddress(cell.addresses.get(name)!)
    // Asked once: it is near the end before it has an entry of the leader's term, and that is waited for.
    const connection = await Connection.connect(cell.addresses.get(survivor!)!)
    await connection.request({ type: MessageType.MemberAdd, name, address }, { deadlineMs: 60_000 })
    connection.close()
  }
  t.equal(node.status().members.filter(({ kind }) => kind === 'voter').length, 3)
  const next = await WalWriter.open({ safekeepers: cell.list, timeline: ID, name: 'next', log: silentLog })
  t.teardown(() => next.close())
  t.equal(next.endLsn, kept)
  await write(next, 500_000)
  await caughtUp(cell, next)
  for (const { listener } of cell.nodes.values()) {
    const connection = await Connection.connect(listener)
    const { message } = await connection.request({ type: MessageType.WalPartings, timeline: ID })
    t.same(message.partings, [{ lsn: kept, cellId }], 'each tells page servers where the log parted')
    connection.close()
  }

  // One that was taken for lost comes back with its disk.
  const [back] = lost
  await cell.stop(back!)
  renameSync(join(cell.dir, back!), join(cell.dir, `${back}-new`))
  renameSync(copyOf(back!), join(cell.dir, back!))
  const before = warnings.length
  await cell.startNode(back!)
  await until('it says why it is refused', () =>
    warnings
      .slice(before)
      .some(({ node: by, reason }) => by === back && reason?.includes('was given up') === true),
  )
  t.match(
    warnings.slice(before).find(({ reason }) => reason?.includes('was given up'))!.reason!,
    new RegExp(
      `cell ${old.cellId}, .* was given up: cell ${cellId} was made of what one of its members had .*member recover`,
    ),
  )
  const stranger = cell.nodes.get(back!)!.safekeeper.node
  t.equal(stranger.status().cellId, old.cellId)
  t.equal(stranger.leading, undefined)
  await write(next, 100_000)
  await cell.stop(back!)
  renameSync(join(cell.dir, back!), copyOf(back!))
  renameSync(join(cell.dir, `${back}-new`), join(cell.dir, back!))
  await cell.startNode(back!)
  await caughtUp(cell, next)
})
