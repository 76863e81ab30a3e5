import fc from 'fast-check'
import t from 'tap'
import { ChecksumChain } from '../../../parser/checksum-chain.ts'
import { MTR_TRAILER_BYTES } from '../../../parser/mtr-scanner.ts'
import { sealMtr } from '../../support/redo-builder.ts'

/** Adds what the stretch says of itself, given where its mini-transactions end. */
function chained(mtrs: readonly Uint8Array[]): ChecksumChain {
  const chain = new ChecksumChain()
  let at = 0
  for (const { length } of mtrs) {
    const terminator = at + length - MTR_TRAILER_BYTES
    chain.add(terminator)
    at += length
  }
  return chain
}

const lengths = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 300 }) },
  { weight: 2, arbitrary: fc.integer({ min: 240, max: 270 }) },
  { weight: 1, arbitrary: fc.integer({ min: 4000, max: 70_000 }) },
)
const sealed = fc
  .tuple(lengths, fc.integer({ min: 0, max: 1 }), fc.nat())
  .map(([length, terminator, seed]) => {
    const records = new Uint8Array(length)
    for (let i = 0, x = seed; i < length; i++) {
      x = (Math.imul(x, 1103515245) + 12345) | 0
      records[i] = x >>> 16
    }
    return sealMtr(records, terminator)
  })

t.test('right checksums, of mini-transactions of any length, make the CRC of the stretch', async () => {
  fc.assert(
    fc.property(fc.array(sealed, { maxLength: 30 }), mtrs => {
      const stretch = Buffer.concat(mtrs)
      return chained(mtrs).matches(stretch, 0, stretch.length)
    }),
  )
})

t.test('one mini-transaction of more than a mebibyte', async t => {
  const mtr = Buffer.from(sealMtr(new Uint8Array(3_000_000).fill(7)))
  t.ok(chained([mtr]).matches(mtr, 0, mtr.length))
  mtr[2_000_000]! ^= 1
  t.notOk(chained([mtr]).matches(mtr, 0, mtr.length))
})

t.test('any bit that is turned over is found, in records and in stored checksums', async () => {
  const flips = fc.array(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), {
    minLength: 1,
    maxLength: 3,
  })
  fc.assert(
    fc.property(fc.array(sealed, { minLength: 1, maxLength: 12 }), flips, (mtrs, places) => {
      const stretch = Buffer.concat(mtrs)
      // Terminators tell where mini-transactions end; the chain takes them as they are.
      const terminators = new Set<number>()
      let at = 0
      for (const { length } of mtrs) {
        at += length
        terminators.add(at - MTR_TRAILER_BYTES)
      }
      const turned = new Set<number>()
      for (const place of places) {
        const bit = Math.floor(place * stretch.length * 8)
        if (!terminators.has(bit >>> 3)) turned.add(bit)
      }
      for (const bit of turned) stretch[bit >>> 3]! ^= 1 << (bit & 7)
      return chained(mtrs).matches(stretch, 0, stretch.length) === (turned.size === 0)
    }),
  )
})

t.test('a stretch within a buffer, which stays as it is; and one after another', async t => {
  const one = sealMtr(Uint8Array.of(2, 3, 4), 0)
  const two = sealMtr(Uint8Array.of(9, 8, 7, 6), 1)
  const bytes = Buffer.concat([Uint8Array.of(99), one, two, Uint8Array.of(99)])
  const before = Buffer.from(bytes)
  const chain = new ChecksumChain()
  chain.add(1 + 3)
  t.ok(chain.matches(bytes, 1, 1 + one.length))
  chain.reset()
  chain.add(1 + one.length + 4)
  t.ok(chain.matches(bytes, 1 + one.length, bytes.length - 1))
  t.notOk(chain.matches(bytes, 1, bytes.length - 1), 'more than was added')
  t.same(bytes, before)
  for (let i = 0; i < 3000; i++) chain.add(0)
  chain.reset()
  t.ok(chain.matches(bytes, 2, 2), 'nothing is as it should be')
})
