/** A node whose address goes to and fro is two; one that moves is one. */
import t from 'tap'
import type { NodeId } from '../../../server/safekeeper/core/types.ts'
import { DuplicateNodes } from '../../../server/safekeeper/duplicate-nodes.ts'
import { type Log, silentLog } from '../../../server/shared/log.ts'

const C = 'c.0123456789abcdef' as NodeId
const MINUTE = 60_000

function rig() {
  const clock = { nowMs: 0, monotonicMs: () => clock.nowMs, sleep: async () => {}, wallTimeUs: () => 0 }
  const members = new Set([C])
  const warned: { fields: unknown; text: string }[] = []
  const duplicates = new DuplicateNodes({
    isMember: id => members.has(id),
    clock,
    log: {
      ...silentLog,
      warn: (fields: unknown, text: string) => warned.push({ fields, text }),
    } as unknown as Log,
  })
  return {
    duplicates,
    clock,
    members,
    warned,
    /** Each over both lanes. */
    subscribes(...addresses: string[]) {
      for (const address of addresses)
        for (const _ of ['control', 'entries']) {
          duplicates.onSubscribed({ nodeId: C, address, zone: '' })
          clock.nowMs += 500
        }
    },
  }
}

t.test('two that take turns are told of, with both addresses, once in five minutes', async t => {
  const { duplicates, subscribes, warned, clock } = rig()
  subscribes('h:2', 'h:1')
  t.equal(duplicates.problem, '')
  for (let turn = 0; turn < 200; turn++) subscribes('h:2', 'h:1')
  t.match(duplicates.problem, /^c\.0123456789abcdef runs twice, at h:1 and at h:2: .* empty folder/)
  t.same(
    warned.map(({ fields }) => fields),
    Array(2).fill({ peer: C, addresses: ['h:1', 'h:2'] }),
  )
  t.equal(warned[0]!.text, duplicates.problem)
  clock.nowMs += MINUTE
  t.equal(duplicates.problem, '', 'one of them was stopped')
})

t.test('one that moves, and moves back, is one', async t => {
  const { duplicates, subscribes, warned, clock } = rig()
  subscribes('h:1', 'h:2', 'h:1', 'h:1', 'h:3', 'h:4', 'h:5')
  t.equal(duplicates.problem, '')
  for (let day = 0; day < 5; day++) {
    clock.nowMs += MINUTE / 2
    subscribes('h:1', 'h:2')
    clock.nowMs += MINUTE / 2
  }
  t.equal(duplicates.problem, '')
  t.same(warned, [])
})

t.test('only of members', async t => {
  const { duplicates, subscribes, members } = rig()
  members.clear()
  subscribes('h:1', 'h:2', 'h:1', 'h:2')
  t.equal(duplicates.problem, '')
  members.add(C)
  subscribes('h:1', 'h:2', 'h:1', 'h:2')
  t.not(duplicates.problem, '')
  members.clear()
  duplicates.onSubscribed({ nodeId: 'd.0123456789abcdef', address: 'h:9', zone: '' })
  t.equal(duplicates.problem, '', 'it was removed')
})
