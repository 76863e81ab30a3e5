import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { stampChecksum } from '../../../parser/page-format.ts'
import { encryptionInfoOffset, parseSpaceFlags } from '../../../parser/space-flags.ts'
import { scanDatadir, scanTable, systemFiles } from '../../../server/datadir/scan.ts'
import { FLAGS_16K, fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

t.test('lists tablespaces of all kinds', async t => {
  const elsewhere = join(t.testdir({ data: {}, elsewhere: { db: {} } }), 'elsewhere/db/far.ibd')
  writeFileSync(elsewhere, fakeSpace({ space: 9, pages: 4 }))
  const dir = fakeDatadir(join(elsewhere, '../../../data'), {
    undo001: fakeSpace({ space: 1, pages: 5 }),
    'db/t.ibd': fakeSpace({ space: 7, pages: 6, fspSize: 5 }),
    'db/t#P#p0.ibd': fakeSpace({ space: 8, pages: 4 }),
    'db/far.isl': elsewhere,
    'db/left.isl': '/nowhere/db/left.ibd',
    'db/t.frm': 'not a tablespace',
    'db/unborn.ibd': Buffer.alloc(65536),
    '#innodb_temp/x.ibd': 'ignored',
    ibtmp1: 'ignored',
  })
  const scan = await scanDatadir(dir)
  t.equal(scan.pageSize, 16384)
  t.strictSame(
    scan.spaces.map(s => [s.space, s.name, s.kind, s.pages, s.fspSize, s.external]),
    [
      [0, 'ibdata1', 'system', 200, 200, false],
      [1, 'undo001', 'undo', 5, 5, false],
      [9, elsewhere, 'table', 4, 4, true],
      [8, 'db/t#P#p0.ibd', 'table', 4, 4, false],
      [7, 'db/t.ibd', 'table', 6, 5, false],
    ],
  )
  t.strictSame(scan.unborn, ['db/unborn.ibd'])
  t.equal((await scanTable(dir, 'db/t.ibd', false))?.space, 7)
  t.equal(await scanTable(dir, 'db/nobody.ibd', false), undefined)
})

t.test('a system tablespace of several files', async t => {
  const whole = fakeSpace({ space: 0, pages: 200, fspSize: 200 })
  const dir = fakeDatadir(t.testdir(), {
    ibdata1: whole.subarray(0, 128 * 16384),
    ibdata2: whole.subarray(128 * 16384),
    ibdata3: 'of no use: all pages are found by then',
  })
  const [system] = (await scanDatadir(dir)).spaces
  t.equal(system!.name, 'ibdata1:128,ibdata2')
  t.strictSame(
    system!.parts.map(p => [p.firstPage, p.pages]),
    [
      [0, 128],
      [128, 72],
    ],
  )
  t.strictSame(systemFiles(system!.name), [
    { name: 'ibdata1', pages: 128 },
    { name: 'ibdata2', pages: undefined },
  ])
  t.throws(() => systemFiles('ibdata1,ibdata2'), /not a list/)
  t.throws(() => systemFiles('../etc/passwd'), /not a list/)
})

t.test('refuses what it cannot follow, and says why', async t => {
  const cases: [
    why: string,
    files: Record<string, Uint8Array | string>,
    remove: string[],
    message: RegExp,
  ][] = [
    ['MySQL 8', { 'mysql.ibd': 'x' }, [], /MySQL 8 or later/],
    ['no InnoDB', {}, ['ibdata1'], /has no ibdata1/],
    ['no log', {}, ['ib_logfile0'], /has no ib_logfile0; if innodb_log_group_home_dir/],
    ['unprepared backup', { xtrabackup_checkpoints: 'x' }, ['ib_logfile0'], /was not prepared/],
    [
      'page sizes mixed',
      { 'db/t.ibd': fakeSpace({ space: 5, pages: 8, flags: 0x13 }) },
      [],
      /has a page size of 4096/,
    ],
    [
      'ids twice',
      { 'a/t.ibd': fakeSpace({ space: 5, pages: 4 }), 'b/t.ibd': fakeSpace({ space: 5, pages: 4 }) },
      [],
      /same tablespace id 5/,
    ],
    [
      'damaged page 0',
      { 'db/t.ibd': fakeSpace({ space: 5, pages: 4 }).fill(1, 300, 310) },
      [],
      /t\.ibd: page 0 is damaged: full_crc32/,
    ],
    [
      'no tablespace',
      { 'db/t.ibd': Buffer.alloc(65536, 0xee) },
      [],
      /t\.ibd: page 0 is damaged: tablespace flags 0xeeeeeeee/,
    ],
    ['lost link', { 'db/t.isl': '/nowhere/db/t.ibd', 'db/t.frm': '' }, [], /named by an \.isl link/],
    ['odd link', { 'db/t.isl': 'relative.ibd' }, [], /does not name an \.ibd file/],
  ]
  for (const [why, files, remove, message] of cases) {
    const dir = fakeDatadir(t.testdir(), files)
    for (const name of remove) rmSync(join(dir, name))
    await t.rejects(scanDatadir(dir), { message }, why)
  }
  await t.rejects(scanDatadir('/nowhere/at/all'), { message: /no such file or directory/ })
  const empty = t.testdir()
  await t.rejects(scanDatadir(empty), { message: /is empty/ })
})

t.test('two files with one id are refused beside a running server as well', async t => {
  const dir = fakeDatadir(t.testdir(), {
    'a/t.ibd': fakeSpace({ space: 5, pages: 4 }),
    'b/copy.ibd': fakeSpace({ space: 5, pages: 4 }),
  })
  await t.rejects(scanDatadir(dir, { live: true }), {
    kind: 'retry',
    message: /copy\.ibd: has the same tablespace id 5 as .*t\.ibd; move the one/,
  })
})

t.test('encrypted tablespaces are refused, unless nothing in them is', async t => {
  const make = (type: number, keyVersion: number): Buffer => {
    const file = fakeSpace({ space: 5, pages: 4 })
    const format = parseSpaceFlags(FLAGS_16K)
    const at = encryptionInfoOffset(format)
    file.set([0x73, 0x0e, 0x0c, 0x52, 0x45, 0x74, type, 16], at)
    file.writeUInt32BE(keyVersion, at + 8 + 16)
    stampChecksum(file.subarray(0, 16384), format)
    return file
  }
  await t.rejects(scanDatadir(fakeDatadir(t.testdir(), { 'db/t.ibd': make(1, 1) })), {
    message: /is an encrypted tablespace/,
  })
  t.equal((await scanDatadir(fakeDatadir(t.testdir(), { 'db/t.ibd': make(1, 0) }))).spaces.length, 2)
  t.equal((await scanDatadir(fakeDatadir(t.testdir(), { 'db/t.ibd': make(0, 1) }))).spaces.length, 2)
})

t.test('permission denied', { skip: process.getuid?.() === 0 && 'root may read everything' }, async t => {
  const dir = fakeDatadir(t.testdir())
  chmodSync(join(dir, 'ibdata1'), 0)
  await t.rejects(scanDatadir(dir), { message: /permission denied; run this as the user/ })
  mkdirSync(join(dir, 'x'))
})
