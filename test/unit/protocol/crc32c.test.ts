import t from 'tap'
import {
  CRC32C_NATIVE_BYTES_MIN,
  Crc32cOfBuffer,
  crc32c,
  crc32cCombine,
  crc32cTables,
} from '../../../protocol/crc32c.ts'

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

t.test('of two ranges, from the sums of both', async t => {
  const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 2654435761) >>> 11)
  for (const cut of [0, 1, 2, 3, 63, 64, 4095, 4096, 65_537, 262_144, 299_999, 300_000])
    t.equal(
      crc32cCombine(crc32c(bytes, 0, cut), crc32c(bytes, cut, bytes.length), bytes.length - cut),
      crc32c(bytes, 0, bytes.length),
      `cut at ${cut}`,
    )
  // Longer than any range that can be had in memory here: a gibibyte of zeros, made of its halves.
  let zeros = crc32c(new Uint8Array(1), 0, 1)
  for (let length = 1; length < 2 ** 30; length *= 2) zeros = crc32cCombine(zeros, zeros, length)
  const one = crc32c(new Uint8Array(1 << 20), 0, 1 << 20)
  let again = one
  for (let i = 1; i < 1024; i++) again = crc32cCombine(again, one, 1 << 20)
  t.equal(again, zeros)
})
