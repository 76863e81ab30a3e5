import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { PalimpsestError } from '../../../protocol/errors.ts'
import { toLsn } from '../../../protocol/ids.ts'
import {
  addressArgument,
  describeError,
  findTimeline,
  integerArgument,
  lsnArgument,
  momentOf,
  pathArgument,
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
  const { TZ } = process.env
  process.env['TZ'] = 'Asia/Tokyo'
  t.teardown(() => {
    if (TZ === undefined) delete process.env['TZ']
    else process.env['TZ'] = TZ
  })
  t.equal(timeArgument('2026-11-21'), Date.UTC(2026, 10, 20, 15) * 1000, 'a day begins at its own midnight')
  t.equal(timeArgument('2026-11-21 14:30 +0100'), Date.UTC(2026, 10, 21, 13, 30) * 1000)
  t.equal(timeArgument('2026-11-21t14:30:00-03'), Date.UTC(2026, 10, 21, 17, 30) * 1000)
  for (const bad of ['yesterday', '14:30', '2026-13-01T00:00:00Z', '1', '2026-02-30', '2026-11-21 25:00'])
    t.throws(() => timeArgument(bad), {
      code: 'commander.invalidArgument',
      message: /for local time \(which is Asia\/Tokyo here\)/,
    })
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

t.test('what is given twice, or empty', async t => {
  t.same(momentOf({ lsn: toLsn(7) }), { lsn: 7, timeUs: undefined })
  t.throws(() => momentOf({ lsn: toLsn(7), time: 1 }), { name: 'UsageError' })
  t.equal(pathArgument('.'), '.')
  t.throws(() => pathArgument(''), { code: 'commander.invalidArgument' })
})

t.test('a timeline that is not there: names like it', async t => {
  const names = ['prod', 'test', 'before-upgrade']
  const server = {
    async request({ name }: { name: string }) {
      if (names.includes(name)) return { message: name }
      throw new PalimpsestError('invalid', `there is no timeline named ${name} on this page server`)
    },
    requestAll: async () => [{ message: { timelines: names.map(name => ({ name })) } }],
  } as unknown as Connection
  t.equal(await findTimeline(server, 'prod'), 'prod')
  await t.rejects(findTimeline(server, 'prdo'), { message: /named prdo on .*; did you mean prod\?/ })
  await t.rejects(findTimeline(server, 'Before-Upgrades'), { message: /did you mean before-upgrade\?/ })
  await t.rejects(findTimeline(server, 'customers'), {
    kind: 'invalid',
    message: /"palimpsest timeline list" shows/,
  })
  await t.rejects(findTimeline(server, 'a b'), { name: 'UsageError' })
})

t.test('a refusal names the server that gave it, once', async t => {
  const refused = new PalimpsestError('invalid', 'the token is refused')
  t.equal(describeError(refused), 'the token is refused')
  refused.address = '10.0.0.1:7070'
  t.equal(describeError(refused), '10.0.0.1:7070: the token is refused')
  const unreached = new PalimpsestError('retry', 'cannot connect to 10.0.0.1:7070: nobody listens there')
  unreached.address = '10.0.0.1:7070'
  t.equal(describeError(unreached), 'cannot connect to 10.0.0.1:7070: nobody listens there')
  t.equal(describeError(new Error('plain')), 'plain')
  t.equal(describeError('thrown'), 'thrown')
})

t.test('what the operating system says of files is said in words', async t => {
  const dir = t.testdir({ file: '' })
  const told = async (path: string) => await writeFile(path, '').then(() => '', describeError)
  t.equal(
    await told(join(dir, 'file', 'x')),
    `${join(dir, 'file', 'x')}: what stands above it is a file, and not a directory (ENOTDIR)`,
  )
  t.equal(await told(dir), `${dir}: is a directory, and not a file (EISDIR)`)
  t.equal(
    describeError(
      Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED', syscall: 'connect' }),
    ),
    'connect ECONNREFUSED',
  )
})
