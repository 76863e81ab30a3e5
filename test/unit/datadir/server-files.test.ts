/** Files that are not the server's are not read, whatever links lead to them. */
import { execFileSync } from 'node:child_process'
import { chownSync, closeSync, lchownSync, linkSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { scanDatadir, scanTable } from '../../../server/datadir/scan.ts'
import { openServerFile, openServerFileSync, serverFilesOf } from '../../../server/datadir/server-files.ts'
import { fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

const SERVER = 65534
const OTHER = 65533
const skip = process.getuid?.() !== 0 && 'only root can make files of several users'

/** A datadir of one user, and files of another and of root beside it. */
function setUp(t: Test): { dir: string; outside: string } {
  const top = t.testdir({ data: { db: {} }, outside: { 'shadow.frm': 'secret', 'moved.MYD': 'rows' } })
  const dir = join(top, 'data')
  const outside = join(top, 'outside')
  writeFileSync(join(dir, 'db/t.frm'), 'table')
  for (const path of [dir, join(dir, 'db'), join(dir, 'db/t.frm'), join(outside, 'moved.MYD')])
    chownSync(path, SERVER, SERVER)
  return { dir, outside }
}

async function read(dir: string, path: string, follow = true): Promise<string> {
  const file = await openServerFile(await serverFilesOf(dir), join(dir, path), follow)
  return await file.readFile('utf8').finally(() => file.close())
}

t.test('links lead to files of the server only', { skip }, async t => {
  const { dir, outside } = setUp(t)
  writeFileSync(join(dir, 'debian.flag'), "root's, where it lies")
  symlinkSync(join(outside, 'shadow.frm'), join(dir, 'db/soft.frm'))
  linkSync(join(outside, 'shadow.frm'), join(dir, 'db/hard.frm'))
  symlinkSync(outside, join(dir, 'far'))
  symlinkSync(join(outside, 'moved.MYD'), join(dir, 'db/m.MYD'))
  t.equal(await read(dir, 'db/t.frm'), 'table')
  t.equal(await read(dir, 'debian.flag'), "root's, where it lies")
  t.equal(await read(dir, 'db/m.MYD'), 'rows', 'DATA DIRECTORY')
  t.equal(await read(dir, 'far/moved.MYD'), 'rows', 'a database on another disk')
  for (const path of ['db/soft.frm', 'db/hard.frm', 'far/shadow.frm'])
    await t.rejects(
      read(dir, path),
      { name: 'ForeignFileError', message: /another user \(0; .* user 65534\)/ },
      path,
    )
  await t.rejects(read(dir, 'db/m.MYD', false), { message: /symbolic link that is not followed/ })
  const files = await serverFilesOf(dir)
  t.throws(() => openServerFileSync(files, join(dir, 'db/hard.frm')), { name: 'ForeignFileError' })
  t.throws(() => openServerFileSync(files, join(dir, 'db/m.MYD')), { name: 'ForeignFileError' })
  closeSync(openServerFileSync(files, join(dir, 'db/t.frm')))
})

t.test('a directory of root, made for the server: its ibdata1 tells who that is', { skip }, async t => {
  const { dir, outside } = setUp(t)
  chownSync(dir, 0, SERVER)
  writeFileSync(join(dir, 'ibdata1'), '')
  chownSync(join(dir, 'ibdata1'), SERVER, SERVER)
  symlinkSync(join(outside, 'shadow.frm'), join(dir, 'db/soft.frm'))
  await t.rejects(read(dir, 'db/soft.frm'), { name: 'ForeignFileError' })
  chownSync(join(dir, 'ibdata1'), 0, 0)
  t.equal(await read(dir, 'db/soft.frm'), 'secret', 'a server that runs as root may read everything itself')
})

t.test('what is no file holds nobody up', async t => {
  const dir = t.testdir({ directory: {} })
  execFileSync('mkfifo', [join(dir, 'fifo')])
  for (const path of ['fifo', 'directory'])
    await t.rejects(read(dir, path), { message: /is no regular file/ })
  await t.rejects(read(dir, 'nothing'), { code: 'ENOENT' })
  await t.rejects(serverFilesOf(join(dir, 'nowhere')), { message: /no such file or directory/ })
})

t.test('tablespaces', { skip }, async t => {
  const top = t.testdir({ data: {}, outside: {} })
  const outside = join(top, 'outside')
  const foreign = join(outside, 'foreign.ibd')
  const own = join(outside, 'own.ibd')
  writeFileSync(foreign, fakeSpace({ space: 9, pages: 4 }))
  writeFileSync(own, fakeSpace({ space: 8, pages: 4 }))
  chownSync(foreign, OTHER, OTHER)
  const dir = fakeDatadir(join(top, 'data'), { 'db/own.isl': own, 'db/own.frm': '' })
  for (const path of [dir, join(dir, 'db'), own]) chownSync(path, SERVER, SERVER)
  t.equal((await scanDatadir(dir)).spaces.length, 2, 'DATA DIRECTORY')
  mkdirSync(join(dir, 'more'))
  symlinkSync(foreign, join(dir, 'more/t.ibd'))
  lchownSync(join(dir, 'more/t.ibd'), SERVER, SERVER)
  await t.rejects(scanDatadir(dir), { message: /more\/t\.ibd: is a link to a file of another user \(65533/ })
  await t.rejects(scanTable(dir, 'more/t.ibd', false), { name: 'ForeignFileError' })
  symlinkSync(foreign, join(dir, 'more/x.isl'))
  await t.rejects(scanDatadir(dir), { name: 'ForeignFileError' }, 'nor what stands in it')
})
