import t from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import { StaleGuard } from '../../../server/attach/stale-guard.ts'

const NOTHING = new Uint8Array(0)

t.test('the same mini-transaction at the same place of a block is a repetition', async t => {
  const guard = new StaleGuard()
  guard.add(1000, 0x12345678)
  t.ok(guard.isRepeated(1000 + 512, 0x12345678, NOTHING, 0, 0), 'one block later')
  t.ok(guard.isRepeated(1000 + 4096 * 9, 0x12345678, NOTHING, 0, 0), 'some blocks later')
  t.notOk(guard.isRepeated(1001 + 4096, 0x12345678, NOTHING, 0, 0), 'at another place of the block')
  t.notOk(guard.isRepeated(1000 + 4096, 0x12345679, NOTHING, 0, 0), 'another checksum')
})

t.test('remembers the last hundred thousand and more', async t => {
  const guard = new StaleGuard()
  const word = Buffer.alloc(4)
  const crc = (i: number): number => {
    word.writeUInt32LE(i)
    return crc32c(word, 0, 4)
  }
  for (let i = 0; i < 400_000; i++) guard.add(i * 130, crc(i))
  let missed = 0
  let wrong = 0
  for (let i = 250_000; i < 400_000; i++) {
    if (!guard.isRepeated(i * 130 + 4096, crc(i), NOTHING, 0, 0)) missed++
    if (guard.isRepeated(i * 130 + 4096, crc(i + 1_000_000), NOTHING, 0, 0)) wrong++
  }
  t.ok(missed < 150, `${missed} of 150,000 forgotten`)
  t.ok(wrong < 10, `${wrong} taken for repetitions`)
})

t.test('compares with raw redo from before', async t => {
  const guard = new StaleGuard()
  const raw = Uint8Array.from({ length: 8192 }, (_, i) => (i * 7919) >>> 3)
  // It ends at offset 20000; so raw[i] lies at 20000 - 8192 + i.
  guard.preload(raw, 20_000)
  const begin = 20_000 - raw.length
  const at = 15_000
  const mtr = raw.slice(at - begin, at - begin + 40)
  t.ok(guard.isRepeated(at + 8192, 1, mtr, 0, mtr.length))
  t.notOk(guard.isRepeated(at + 8193, 1, mtr, 0, mtr.length))
  mtr[3]! ^= 1
  t.notOk(guard.isRepeated(at + 8192, 1, mtr, 0, mtr.length))
})
