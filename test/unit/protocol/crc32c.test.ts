import t from 'tap'
import { CRC32C_NATIVE_BYTES_MIN, Crc32cOfBuffer, crc32c, crc32cTables } from '../../../protocol/crc32c.ts'

t.test('known answers (RFC 3720, B.4)', async t => {
  const sum = (bytes: Uint8Array) => crc32c(bytes, 0, bytes.length)
  t.equal(sum(new TextEncoder().encode('123456789')), 0xe3069283)
  t.equal(sum(new Uint8Array(32)), 0x8a9136aa)
  t.equal(sum(new Uint8Array(32).fill(0xff)), 0x62a8ab43)
  t.equal(sum(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e)
  t.equal(sum(new Uint8Array(0)), 0)
})

t.test('all ways give the same number, at every alignment, in shared memory, with a seed', async t => {
  const slab = new Uint8Array(new SharedArrayBuffer(4096))
  for (let i = 0; i < slab.length; i++) slab[i] = (i * 2654435761) >>> 13
  const bitwise = (buf: Uint8Array, start: number, end: number, seed: number) => {
    let c = ~seed
    for (let i = start; i < end; i++) {
      c ^= buf[i]!
      for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
    }
    return ~c >>> 0
  }
  const bound = new Crc32cOfBuffer()
  let wrong = 0
  for (let shift = 0; shift < 5; shift++) {
    const buf = slab.subarray(shift, slab.length - 3)
    bound.bind(buf)
    for (const length of [
      0,
      1,
      2,
      3,
      7,
      8,
      9,
      15,
      16,
      31,
      100,
      CRC32C_NATIVE_BYTES_MIN - 1,
      CRC32C_NATIVE_BYTES_MIN,
      1000,
    ])
      for (let start = 0; start < 9; start++) {
        const expected = bitwise(buf, start, start + length, 0)
        if (crc32c(buf, start, start + length) !== expected) wrong++
        if (crc32cTables(buf, start, start + length) !== expected) wrong++
        if (bound.sum(start, start + length) !== expected) wrong++
        const middle = start + (length >> 1)
        if (crc32c(buf, middle, start + length, crc32c(buf, start, middle)) !== expected) wrong++
      }
    if (bound.sum(0, buf.length) !== bitwise(buf, 0, buf.length, 0)) wrong++
    if (bound.sum(buf.length - 9, buf.length) !== bitwise(buf, buf.length - 9, buf.length, 0)) wrong++
  }
  t.equal(wrong, 0)
})
