/** What `palimpsest status` says about a cell, and how `--peers` is read. */
import t from 'tap'
import { type CellStatusReply, MessageType } from '../../../protocol/messages.ts'
import { cellComplaints, cellTable } from '../../../server/commands/cell-status.ts'
import { peersArgument } from '../../../server/commands/safekeeper.ts'

const id = (name: string) => `${name}.0000000000000001`

function status(name: string, zones: readonly string[]): CellStatusReply {
  return {
    type: MessageType.CellStatusReply,
    nodeId: id(name),
    cellId: 'cd'.repeat(16),
    role: name === 'a' ? 'leader' : 'follower',
    zone: '',
    term: 3,
    leader: id('a'),
    leaderAddress: 'h:1',
    leaderSilentMs: 0,
    beginIndex: 1,
    lastIndex: 10,
    flushedIndex: 9,
    commitIndex: 9,
    appliedIndex: 9,
    diskBytes: 2 ** 20,
    rawBytes: 1000,
    storedBytes: 250,
    timelines: 1,
    writable: true,
    lastError: '',
    members: ['a', 'b', 'c'].map((member, i) => ({
      nodeId: id(member),
      address: 'h:1',
      zone: zones[i] ?? '',
      kind: 'voter' as const,
      matchIndex: 9,
      silentMs: 0,
    })),
  }
}

t.test('what wants attention', async t => {
  const view = (zones: string[], up = ['a', 'b', 'c']) => ({
    cell: status('a', zones),
    nodes: ['a', 'b', 'c'].map(name => ({
      name,
      status: up.includes(name) ? status(name, zones) : undefined,
    })),
  })
  t.same(cellComplaints(view(['', '', ''])), [])
  t.same(cellComplaints(view(['x', 'y', 'z'])), [])
  t.match(cellComplaints(view(['x', 'y', 'x'])), [/2 of 3 safekeepers stand in zone x/])
  t.match(cellComplaints(view(['', '', ''], ['a', 'c'])), [/no answer from safekeeper b: not one more/])
  t.match(cellComplaints(view(['', '', ''], ['a'])), [/b, c: no quorum is left/])
  const { cell, nodes } = view(['', '', ''])
  const damaged = { ...nodes[1]!.status!, lastError: '/d/log/1.pack is damaged: nobody has it' }
  t.same(cellComplaints({ cell, nodes: [nodes[0]!, { name: 'b', status: damaged }, nodes[2]!] }), [
    'safekeeper b: /d/log/1.pack is damaged: nobody has it',
  ])
  const recover = (status: CellStatusReply): CellStatusReply => ({
    ...status,
    role: 'recovering',
    leader: '',
  })
  const leaderless = (node: { name: string; status: CellStatusReply }) => ({
    ...node,
    status: { ...node.status, leader: '' },
  })
  const [n1, n2, n3] = nodes.map(({ name, status }) => ({ name, status: status! }))
  t.match(
    cellComplaints({ cell, nodes: [n1!, { name: 'b', status: recover(n2!.status) }, n3!] }),
    [/^safekeeper b: part of the log was damaged; it is fetched from the others/],
    'one that recovers has others to do so from',
  )
  t.match(
    cellComplaints({
      cell: { ...cell, leader: '' },
      nodes: [
        leaderless(n1!),
        { name: 'b', status: recover(n2!.status) },
        { name: 'c', status: recover(n3!.status) },
      ],
    }),
    [/no leader/, /^safekeeper b, c: .* no quorum may vote.*member recover/],
    'too many that recover do not get out of it alone',
  )
  t.match(
    cellComplaints({
      cell,
      nodes: [n1!, { name: 'b', status: recover(n2!.status) }, { name: 'c', status: undefined }],
    }),
    [/no answer from safekeeper c: no quorum is left/, /^safekeeper b: .* no vote until then/],
    'one that recovers does not count for the quorum',
  )
  t.match(
    cellComplaints({
      cell: { ...cell, leader: '' },
      nodes: [leaderless(n1!), leaderless(n2!), leaderless(n3!)],
    }),
    [/no leader/],
  )
  t.same(
    cellComplaints({ cell: { ...cell, leader: '' }, nodes: [leaderless(n1!), n2!, n3!] }),
    [],
    'the others have one: only the one that was asked does not hear it',
  )
  const removed = status('z', ['', '', ''])
  t.match(cellComplaints({ cell: removed, nodes }), [/^z is no member of the cell any more/])
  const [a, b, c] = status('a', ['x', 'y', 'x']).members
  const four = { ...cell, members: [a!, b!, c!, { ...b!, nodeId: id('d'), zone: 'z' }] }
  t.match(
    cellComplaints({ cell: four, nodes: [...nodes, { name: 'd', status: status('d', []) }] }),
    [/2 of 4 safekeepers stand in zone x/],
    'an even number: half of them may not be lost',
  )
  t.match(cellTable(view(['', '', ''], ['a', 'c'])), /leader[\s\S]*75 %[\s\S]*no answer/)
  const trimmed = { ...nodes[0]!.status!, rawBytes: 100, storedBytes: 994 }
  t.notMatch(
    cellTable({ cell: { ...cell, members: [cell.members[0]!] }, nodes: [{ name: 'a', status: trimmed }] }),
    /%/,
    'tables of packs without redo',
  )
})

t.test('--peers', async t => {
  t.same(
    [...peersArgument('a=h:1, b=h:2,c=[::1]:3')],
    [
      ['a', { host: 'h', port: 1 }],
      ['b', { host: 'h', port: 2 }],
      ['c', { host: '::1', port: 3 }],
    ],
  )
  for (const wrong of ['a', 'a=h', 'a=h:1,b=h:2', 'a=h:1,a=h:2,b=h:3', 'a.b=h:1'])
    t.throws(() => peersArgument(wrong))
})
