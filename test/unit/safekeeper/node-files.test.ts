/** The small files of a node: what was saved is loaded; what a crash cut is the older state; what was damaged is told. */
import t from 'tap'
import { CellState } from '../../../server/safekeeper/cell-state.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'

const like = (fields: object) => fields as Error
const A = 'a.0000000000000001'
const vote = (term: number, votedFor?: string) => ({ term: term as Term, votedFor })

const equal = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)

async function fresh(disk = new MemoryDisk()) {
  await disk.makeDir('/d')
  const files = new NodeFiles(disk, '/d')
  await files.createVote()
  await files.saveNode({ version: 1, nodeId: A, cellId: '', seed: [], recovering: false })
  return { disk, files }
}

t.test('node.json', async t => {
  t.equal(await new NodeFiles(new MemoryDisk(), '/d').loadNode(), undefined)
  const { disk, files } = await fresh()
  const cellId = 'cd'.repeat(16)
  const seed = [{ nodeId: A, address: 'h:1', zone: 'z' }]
  await files.saveNode({ version: 1, nodeId: A, cellId, seed, recovering: true })
  const after = new NodeFiles(
    disk.crash(() => 0),
    '/d',
  )
  t.match(await after.loadNode(), { nodeId: A, cellId, seed, recovering: true })
  disk.content('/d/node.json')[10]! ^= 1
  t.match(await files.loadNode(), { nodeId: A, cellId }, 'there is a copy')
  t.match(await files.loadNode(), { nodeId: A, cellId }, 'of which it was made again')
  disk.content('/d/node-copy.json')[10]! ^= 1
  t.same(await files.checkNode(), ['node-copy.json'])
  t.same(await files.checkNode(), [])
  for (const name of ['node.json', 'node-copy.json']) disk.content(`/d/${name}`)[10]! ^= 1
  await t.rejects(
    new NodeFiles(disk, '/d').loadNode(),
    like({ kind: 'corrupt', message: /node\.json: wrong CRC/ }),
  )
})

t.test('votes survive a power loss, need no space, and one that was cut counts as not given', async t => {
  const { disk, files } = await fresh()
  t.same(await files.loadVote(), vote(0))
  disk.capacity = disk.used
  for (let term = 1; term <= 5; term++) {
    await files.saveVote(vote(term, term % 2 ? A : undefined))
    const after = new NodeFiles(
      disk.crash(() => 0),
      '/d',
    )
    t.same(await after.loadVote(), vote(term, term % 2 ? A : undefined))
  }
  // The sixth is cut: it lies where the fourth was.
  disk.hook = operation => {
    if (operation === 'datasync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  await t.rejects(files.saveVote(vote(6, A)))
  for (const kept of [0, 0.01, 0.1])
    t.same(
      await new NodeFiles(
        disk.crash(() => kept),
        '/d',
      ).loadVote(),
      kept === 0 ? vote(5, A) : vote(6, A),
    )
  disk.hook = () => {}
  for (const at of [5, 4101]) disk.content('/d/vote.json')[at]! ^= 1
  await t.rejects(new NodeFiles(disk, '/d').loadVote(), like({ kind: 'corrupt', message: /vote\.json/ }))
  await disk.remove('/d/vote.json')
  await t.rejects(new NodeFiles(disk, '/d').loadVote(), like({ kind: 'corrupt', message: /ENOENT/ }))
})

t.test('a vote that was acknowledged is in both places: one that rots hides nothing', async t => {
  for (const place of [0, 4096])
    for (let at = 0; at < 74; at++) {
      const { disk, files } = await fresh()
      await files.saveVote(vote(4, A))
      await files.saveVote(vote(5))
      await files.saveVote(vote(5, A))
      disk.content('/d/vote.json')[place + at]! ^= 1 << (at % 8)
      const after = new NodeFiles(disk, '/d')
      if (!equal(await after.loadVote(), vote(5, A))) t.fail(`a flip at ${place + at} changed the vote`)
      // Healed: the other place may rot next.
      disk.content('/d/vote.json')[4096 - place + at]! ^= 1
      if (!equal(await new NodeFiles(disk, '/d').loadVote(), vote(5, A)))
        t.fail(`after a flip at ${place + at} the vote was in one place only`)
      t.equal(await after.checkVote(), true)
      t.equal(await after.checkVote(), false)
    }
})

t.test('a vote that is cut in either place is the new one or the old one, and neither is lost', async t => {
  for (const write of [1, 2])
    for (const kept of [0, 0.02, 1]) {
      const { disk, files } = await fresh()
      await files.saveVote(vote(7, A))
      let syncs = 0
      disk.hook = operation => {
        if (operation === 'datasync' && ++syncs === write)
          throw Object.assign(new Error('EIO'), { code: 'EIO' })
      }
      await t.rejects(files.saveVote(vote(8)))
      const after = await new NodeFiles(
        disk.crash(() => kept),
        '/d',
      ).loadVote()
      t.same(after, write === 1 && kept === 0 ? vote(7, A) : vote(8))
    }
})

t.test('snapshots', async t => {
  const { disk, files } = await fresh()
  const state = (index: number) =>
    new CellState({ voters: [A], learners: [] }, { index: index as LogIndex, term: 2 as Term })
  for (const index of [30, 7]) await files.saveSnapshot(index as LogIndex, state(index).encode())
  const after = new NodeFiles(
    disk.crash(() => 0),
    '/d',
  )
  t.same(await after.listSnapshots(), [7, 30])
  t.match((await after.loadSnapshot(30 as LogIndex)).last, { index: 30, term: 2 })
  t.ok((await after.readSnapshot(7 as LogIndex)).equals(state(7).encode()))
  await files.saveSnapshot(31 as LogIndex, state(30).encode())
  await t.rejects(files.loadSnapshot(31 as LogIndex), like({ kind: 'corrupt', message: /snapshot-31/ }))
  disk.content('/d/snapshot-7.json')[3]! ^= 1
  await t.rejects(files.loadSnapshot(7 as LogIndex), like({ kind: 'corrupt' }))
  await files.removeSnapshot(7 as LogIndex)
  t.same(await files.listSnapshots(), [30, 31])
})
