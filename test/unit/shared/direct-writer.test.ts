import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { nodeDisk } from '../../../server/shared/node-seams.ts'

const FILE_BYTES = 12 * 1024 * 1024
const BLOCK = 4096

function bytesOf(length: number, seed: number): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  let state = seed * 2654435761 + 1
  for (let i = 0; i < length; i++) {
    state = (state * 1103515245 + 12345) & 0x7fffffff
    bytes[i] = 1 + ((state >>> 16) % 255)
  }
  return bytes
}

function folder(t: { teardown(run: () => void): void }): string {
  // Not tmpfs, which may know no writes past the cache.
  const dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_DIR'] ?? tmpdir(), 'direct-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

t.test(
  'writes past the cache and through it, of any length, one behind the other, make one file',
  async t => {
    const path = join(folder(t), 'file')
    const piece = fc.record({
      lengths: fc.array(
        fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(4096, 8192, 65536, 262144 + 104, 5 << 20)),
        { minLength: 1, maxLength: 6 },
      ),
      pastCache: fc.boolean(),
      /** The file is opened anew. */
      reopen: fc.boolean(),
      /** The next write begins so much before the end: the log was cut. */
      back: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 9000 })),
    })
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 0, max: 9000 }),
        fc.array(piece, { maxLength: 8 }),
        async (from, pieces) => {
          writeFileSync(path, Buffer.alloc(FILE_BYTES, 99))
          const expected = Buffer.alloc(FILE_BYTES, 99)
          let file = await nodeDisk.open(path, 'write')
          let end = from
          let seed = 1
          for (const { lengths, pastCache, reopen, back } of pieces) {
            const buffers = lengths.map(length => bytesOf(length, seed++))
            const bytes = Buffer.concat(buffers)
            const at = Math.max(from, end - back)
            if (at + bytes.length > FILE_BYTES) break
            if (reopen) {
              await file.close()
              file = await nodeDisk.open(path, 'write')
            }
            await file.write(buffers, at, pastCache)
            bytes.copy(expected, at)
            end = at + bytes.length
            // Up to the end of the block there may be zeros instead of what was there.
            const got = readFileSync(path)
            const tail = got.subarray(end, Math.ceil(end / BLOCK) * BLOCK)
            if (pastCache && tail.every(byte => byte === 0)) expected.fill(0, end, end + tail.length)
            if (!got.equals(expected)) {
              let differs = 0
              while (got[differs] === expected[differs]) differs++
              throw new Error(`differs at ${differs}; written [${at}, ${end})`)
            }
          }
          await file.datasync()
          await file.close()
        },
      ),
      { numRuns: 20 },
    )
  },
)

t.test('a file whose length is no multiple of a block is written through the cache at its end', async t => {
  const path = join(folder(t), 'file')
  writeFileSync(path, Buffer.alloc(10_000, 7))
  const file = await nodeDisk.open(path, 'write')
  await file.write([bytesOf(1000, 1)], 9000, true)
  await file.write([bytesOf(3000, 2)], 0, true)
  await file.close()
  const got = readFileSync(path)
  t.equal(got.length, 10_000)
  t.ok(got.subarray(9000).equals(bytesOf(1000, 1)))
  t.ok(got.subarray(0, 3000).equals(bytesOf(3000, 2)))
  t.ok(got.subarray(4096, 9000).every(byte => byte === 7))
})

t.test('what was written is readable through the cache, also where it was read before', async t => {
  const path = join(folder(t), 'file')
  writeFileSync(path, Buffer.alloc(FILE_BYTES))
  const file = await nodeDisk.open(path, 'write')
  const target = Buffer.alloc(1 << 20)
  let at = 100
  for (let i = 1; i <= 5; i++) {
    const bytes = bytesOf((1 << 20) + i, i)
    await file.read(target, at)
    await file.write([bytes], at, true)
    await file.read(target, at)
    t.ok(target.equals(bytes.subarray(0, target.length)))
    at += bytes.length
  }
  await file.close()
})
