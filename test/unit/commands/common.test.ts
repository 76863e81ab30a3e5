import t from 'tap'
import {
  addressArgument,
  integerArgument,
  lsnArgument,
  sizeArgument,
  timeArgument,
} from '../../../server/commands/common.ts'

t.test('sizes', async t => {
  t.equal(sizeArgument('1G'), 2 ** 30)
  t.equal(sizeArgument('1.5GiB'), 1.5 * 2 ** 30)
  t.equal(sizeArgument('512m'), 512 * 2 ** 20)
  t.equal(sizeArgument('4096'), 4096)
  for (const bad of ['', 'G', '-1', '1X', '1 2'])
    t.throws(() => sizeArgument(bad), { code: 'commander.invalidArgument' })
})

t.test('moments: with a zone as told, without one as local time', async t => {
  t.equal(timeArgument('2026-11-21T14:30:00Z'), Date.UTC(2026, 10, 21, 14, 30) * 1000)
  t.equal(timeArgument('2026-11-21T14:30:00.250+01:00'), Date.UTC(2026, 10, 21, 13, 30, 0, 250) * 1000)
  t.equal(timeArgument('2026-11-21 14:30:00'), new Date(2026, 10, 21, 14, 30).getTime() * 1000)
  for (const bad of ['yesterday', '14:30', '2026-13-01T00:00:00Z', '1'])
    t.throws(() => timeArgument(bad), { code: 'commander.invalidArgument' })
})

t.test('LSNs, numbers and addresses', async t => {
  t.equal(lsnArgument('9007199254740991'), Number.MAX_SAFE_INTEGER)
  for (const bad of ['9007199254740992', '-1', '1.5', '0x10', ''])
    t.throws(() => lsnArgument(bad), { code: 'commander.invalidArgument' })
  t.equal(integerArgument(1, 10)('10'), 10)
  t.throws(() => integerArgument(1, 10)('11'), { code: 'commander.invalidArgument' })
  t.same(addressArgument('[::1]:7070'), { host: '::1', port: 7070 })
  for (const bad of ['localhost', ':7070', 'a:70700'])
    t.throws(() => addressArgument(bad), { code: 'commander.invalidArgument' })
})
