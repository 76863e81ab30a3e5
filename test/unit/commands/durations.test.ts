import t from 'tap'
import { UsageError } from '../../../server/commands/common.ts'
import { durationArgument, validMs } from '../../../server/commands/durations.ts'

t.test('durations', async t => {
  const parse = durationArgument('1m', '365d')
  for (const [text, ms] of [
    ['30m', 1_800_000],
    ['12h', 43_200_000],
    ['90d', 7_776_000_000],
    ['1.5h', 5_400_000],
    ['60s', 60_000],
    [' 2 h ', 7_200_000],
  ] as const)
    t.equal(parse(text), ms, text)
  for (const bad of ['', '12', 'h', '-1h', '1w', '1h30m', '59s', '366d', '1e3h'])
    t.throws(() => parse(bad), { code: 'commander.invalidArgument' }, bad)
  t.equal(durationArgument('100ms', '1d', 's')('2.5'), 2500, 'where a number alone has a unit')
})

t.test('a validity is said once, or not at all', async t => {
  t.equal(validMs({}, '30d'), 30 * 86_400_000)
  t.equal(validMs({ hours: 5 }, '30d'), 5)
  t.throws(() => validMs({ valid: 1, days: 1 }, '30d'), UsageError)
})
