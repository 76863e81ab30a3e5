import fc from 'fast-check'
import t from 'tap'
import { PAIR_ABSENT, PairTable } from '../../../server/shared/shared-memory.ts'

t.test('PairTable behaves like a Map', async () => {
  // Few distinct keys, so that probes collide and deletions shift runs.
  const key = fc.tuple(fc.integer({ min: 0, max: 6 }), fc.integer({ min: 0, max: 40 }))
  const command = fc.oneof(
    fc.record({ op: fc.constant('set' as const), key, value: fc.integer({ min: 0, max: 1000 }) }),
    fc.record({ op: fc.constant('delete' as const), key, value: fc.constant(0) }),
  )
  fc.assert(
    fc.property(fc.array(command, { maxLength: 600 }), commands => {
      const table = new PairTable(1)
      const model = new Map<string, number>()
      for (const { op, key, value } of commands) {
        const [a, b] = key
        const name = `${a}:${b}`
        if (op === 'set') {
          if (table.set(a, b, value) !== (model.get(name) ?? PAIR_ABSENT)) return false
          model.set(name, value)
        } else if (table.delete(a, b) !== model.delete(name)) return false
      }
      if (table.size !== model.size) return false
      for (let a = 0; a <= 6; a++)
        for (let b = 0; b <= 40; b++)
          if (table.get(a, b) !== (model.get(`${a}:${b}`) ?? PAIR_ABSENT)) return false
      const triples = table.toTriples()
      for (let i = 0; i < triples.length; i += 3)
        if (model.get(`${triples[i]}:${triples[i + 1]}`) !== triples[i + 2]) return false
      return triples.length === 3 * model.size
    }),
  )
})

t.test('PairTable grows and keeps keys of all 32 bits', async t => {
  const table = new PairTable(1)
  for (let i = 0; i < 20_000; i++) table.set(0xffffffff - i, Math.imul(i, 2654435761) >>> 0, i)
  t.equal(table.size, 20_000)
  for (let i = 0; i < 20_000; i++)
    if (table.get(0xffffffff - i, Math.imul(i, 2654435761) >>> 0) !== i) t.fail(`key ${i}`)
})
