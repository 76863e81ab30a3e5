/** What makes a node say that it is no member any more, and what does not. */
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { formatAddress } from '../../../protocol/dial.ts'
import { type CellStatusReply, MessageType } from '../../../protocol/messages.ts'
import type { LogIndex, NodeId } from '../../../server/safekeeper/core/types.ts'
import { RemovalWatch } from '../../../server/safekeeper/removal.ts'
import { type Log, silentLog } from '../../../server/shared/log.ts'

const CELL = 'ce'.repeat(16)
const idOf = (name: string) => `${name}.0123456789abcdef` as NodeId
const A = idOf('a')

interface Answer {
  readonly cellId?: string
  readonly name?: string
  readonly leader?: string
  readonly commitIndex?: number
  readonly members?: readonly string[]
}

/** Node a, a member as of entry 10. `answers`: who listens where. */
function rig(answers: Record<string, Answer | undefined>, membershipIndex = 10) {
  const clock = { nowMs: 0, monotonicMs: () => clock.nowMs, sleep: async () => {}, wallTimeUs: () => 0 }
  const driver = {
    leader: undefined as NodeId | undefined,
    membershipIndex: membershipIndex as LogIndex,
    lastIndex: 20 as LogIndex,
  }
  const members = { all: new Set(['a', 'b', 'c'].map(idOf)) }
  const warned: string[] = []
  let asked = 0
  const watch = new RemovalWatch({
    cellId: CELL,
    self: () => ({ nodeId: A, address: 'a:1', zone: '' }),
    driver,
    members,
    clock,
    log: {
      ...silentLog,
      info: () => {},
      warn: (_: unknown, text: string) => warned.push(text),
    } as unknown as Log,
    dial: async address => {
      asked++
      const answer = answers[formatAddress(address)]
      if (answer === undefined) throw new Error('nobody listens')
      const { name = 'b', cellId = CELL, leader = idOf('c'), commitIndex = 30, members = ['b', 'c'] } = answer
      const message = {
        type: MessageType.CellStatusReply,
        nodeId: idOf(name),
        cellId,
        leader,
        commitIndex,
        members: members.map(member => ({ nodeId: member.includes('.') ? member : idOf(member) })),
      } as unknown as CellStatusReply
      return { request: async () => ({ message }), close: () => {} } as unknown as Connection
    },
  })
  return {
    watch,
    driver,
    members,
    warned,
    asked: () => asked,
    /** So many seconds of looking. */
    async look(seconds: number, led: readonly string[] = Object.keys(answers)) {
      for (let n = 0; n < seconds * 2; n++) {
        watch.look(led)
        clock.nowMs += 500
        await new Promise(resolve => setImmediate(resolve))
      }
    },
  }
}

t.test('one that was removed while it was away says so, once', async t => {
  const { watch, look, warned } = rig({ 'b:1': {} })
  await look(3)
  t.equal(watch.problem, '', 'an election may take so long')
  await look(1)
  t.equal(watch.problem, '', 'one answer is not enough')
  await look(30)
  t.equal(
    watch.problem,
    'this node is no longer a member of the cell (removed by entry 30, as b at b:1 says): stop it, and remove its folder, ' +
      'or add it anew with "palimpsest member add a=a:1"',
  )
  t.same(warned, [watch.problem])
})

t.test('one that was there knows the entry; the name may be another node’s', async t => {
  const there = rig({ 'b:1': {} }, 17)
  there.members.all.delete(A)
  await there.look(10)
  t.match(there.watch.problem, /\(removed at entry 17, as b at b:1 says\)/)
  const other = 'a.ffffffffffffffff'
  const replaced = rig({ 'b:1': { members: ['b', 'c', other] } })
  await replaced.look(10)
  t.match(replaced.watch.problem, /\(replaced by a\.f{16} by entry 30, as b .* remove its folder$/)
})

t.test('it is taken back when a leader is heard, or somebody who knows more says otherwise', async t => {
  const answers: Record<string, Answer> = { 'b:1': {} }
  const { watch, look, driver, warned } = rig(answers)
  await look(10)
  driver.leader = idOf('b')
  await look(1)
  t.equal(watch.problem, '')
  driver.leader = undefined
  await look(2)
  t.equal(watch.problem, '')
  await look(10)
  t.not(watch.problem, '')
  t.equal(warned.length, 2)
  answers['b:1'] = { members: ['a', 'b', 'c'], commitIndex: 40 }
  await look(5)
  t.equal(watch.problem, '')
})

t.test('who knows no better is not believed', async t => {
  for (const [what, answer] of Object.entries({
    'hears no leader': { leader: '' },
    'is in another cell': { cellId: 'dd'.repeat(16) },
    'was removed itself': { members: ['c', 'd'] },
    'is behind': { commitIndex: 9 },
    'is this node': { name: 'a', members: ['a'] },
    'says that it is a member': { members: ['a', 'b', 'c'] },
    'does not answer': undefined,
  })) {
    const { watch, look, asked } = rig({ 'b:1': answer })
    await look(20)
    t.equal(watch.problem, '', what)
    t.ok(asked() > 2, 'it is asked again')
    const two = rig({ 'b:1': answer, 'c:1': { name: 'c' } })
    await two.look(10)
    const isMember = answer?.members?.includes('a') === true && answer.name === undefined
    t.equal(two.watch.problem === '', isMember, 'the next one is asked')
  }
})

t.test('one that waits to be added, or hears a leader, asks nobody', async t => {
  const { watch, look, driver, members, asked } = rig({ 'b:1': {} }, 0)
  members.all.delete(A)
  driver.lastIndex = 0 as LogIndex
  await look(20)
  t.equal(watch.problem, '')
  t.equal(asked(), 0)
  members.all.add(A)
  driver.leader = idOf('b')
  await look(20)
  t.equal(asked(), 0)
})
