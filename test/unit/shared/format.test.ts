import t from 'tap'
import { formatBytes, formatSeconds } from '../../../server/shared/format.ts'

t.test('bytes', async t => {
  t.strictSame([0, 1023, 0.4, 1536, 5 << 20, 40 << 20, 300 << 20, 2 ** 30, 2 ** 61].map(formatBytes), [
    '0 B',
    '1023 B',
    '0 B',
    '1.50 KiB',
    '5.00 MiB',
    '40.0 MiB',
    '300 MiB',
    '1.00 GiB',
    '2048 PiB',
  ])
})

t.test('seconds', async t => {
  t.strictSame([3, 75, 7300, Number.POSITIVE_INFINITY].map(formatSeconds), [
    '3 s',
    '1 min 15 s',
    '2 h 1 min',
    '?',
  ])
})
