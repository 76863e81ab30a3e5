import {
  appendFileSync,
  chownSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { toLsn } from '../../../protocol/ids.ts'
import { FILE_PIECE_BYTES, FileCapture } from '../../../server/attach/file-capture.ts'
import { serverFilesOf } from '../../../server/datadir/server-files.ts'

interface Version {
  lsn: number
  content: Buffer | undefined
}

/** A receiver that holds what it was sent, and checks that pieces come in order. */
async function setUp(t: Test, owner?: number) {
  const dir = t.testdir()
  if (owner !== undefined) chownSync(dir, owner, owner)
  const warnings: string[] = []
  const files = new Map<string, Version[]>()
  const pieces = new Map<string, Buffer[]>()
  const state = { lsn: 100, onPiece: async (): Promise<void> => {} }
  const add = (path: string, version: Version): void => {
    files.set(path, [...(files.get(path) ?? []), version])
  }
  const capture = new FileCapture({
    datadir: dir,
    files: await serverFilesOf(dir),
    warn: text => warnings.push(text),
    position: () => toLsn(state.lsn),
    sink: {
      async putPiece({ path, lsn, totalBytes }, offset, piece) {
        const held = offset === 0 ? [] : (pieces.get(path) ?? [])
        t.equal(Buffer.concat(held).length, offset)
        held.push(Buffer.from(piece))
        pieces.set(path, held)
        const content = Buffer.concat(held)
        if (content.length === totalBytes) add(path, { lsn, content })
        await state.onPiece()
      },
      async remove(path, lsn) {
        add(path, { lsn, content: undefined })
      },
    },
  })
  t.teardown(() => capture.close())
  return { dir, files, state, capture, warnings }
}

t.test('takes all files, then only those that changed', async t => {
  const { dir, files, state, capture } = await setUp(t)
  mkdirSync(join(dir, 'db'))
  writeFileSync(join(dir, 'db/t.frm'), 'one')
  writeFileSync(join(dir, 'db/t.ibd'), 'not this')
  writeFileSync(join(dir, 'aria_log_control'), '')
  await sleep(60)
  await capture.sweep()
  t.strictSame([...files.keys()].sort(), ['aria_log_control', 'db/t.frm'])
  state.lsn = 200
  await capture.sweep()
  t.equal(files.get('db/t.frm')!.length, 1, 'nothing changed, nothing sent')
  writeFileSync(join(dir, 'db/t.frm'), 'two')
  rmSync(join(dir, 'aria_log_control'))
  state.lsn = 300
  await capture.sweep()
  t.strictSame(files.get('db/t.frm')!.at(-1), { lsn: 300, content: Buffer.from('two') })
  t.strictSame(files.get('aria_log_control')!.at(-1), { lsn: 300, content: undefined })
})

t.test('follows symbolic links of databases and of tables, one level deep', async t => {
  const { dir, files, capture } = await setUp(t)
  const elsewhere = mkdtempSync(join(tmpdir(), 'pal-links-'))
  t.teardown(() => rmSync(elsewhere, { recursive: true }))
  mkdirSync(join(elsewhere, 'far/deeper'), { recursive: true })
  writeFileSync(join(elsewhere, 'far/t.frm'), 'far')
  for (const file of ['far/deeper/x.frm', 'my.cnf']) writeFileSync(join(elsewhere, file), 'no')
  writeFileSync(join(elsewhere, 'm.MYD'), 'rows')
  mkdirSync(join(dir, 'db'))
  symlinkSync(join(elsewhere, 'far'), join(dir, 'linked'))
  symlinkSync(join(elsewhere, 'm.MYD'), join(dir, 'db/m.MYD'))
  symlinkSync(join(elsewhere, 'nothing'), join(dir, 'db/dangling.MYD'))
  symlinkSync(join(elsewhere, 'my.cnf'), join(dir, 'my.cnf'))
  await capture.sweep()
  t.strictSame([...files.keys()].sort(), ['db/m.MYD', 'linked/t.frm'])
  t.strictSame(files.get('db/m.MYD')!.at(-1)!.content, Buffer.from('rows'))
})

t.test(
  'what the server may not read itself is not taken, whatever links lead there',
  { skip: process.getuid?.() !== 0 && 'only root can make files of several users' },
  async t => {
    const { dir, files, capture, warnings } = await setUp(t, 65534)
    const elsewhere = mkdtempSync(join(tmpdir(), 'pal-links-'))
    t.teardown(() => rmSync(elsewhere, { recursive: true }))
    writeFileSync(join(elsewhere, 'shadow'), 'secret')
    writeFileSync(join(elsewhere, 'shadow.frm'), 'secret')
    mkdirSync(join(dir, 'db'))
    writeFileSync(join(dir, 'db/t.frm'), 'table')
    const plant = (name: string): void => {
      symlinkSync(join(elsewhere, 'shadow'), join(dir, `db/${name}.MYD`))
      symlinkSync(join(elsewhere, 'shadow.frm'), join(dir, `db/${name}.frm`))
      linkSync(join(elsewhere, 'shadow.frm'), join(dir, `db/hard-${name}.frm`))
    }
    symlinkSync(elsewhere, join(dir, 'far'))
    plant('before')
    await capture.sweep()
    capture.watch()
    await capture.idle()
    plant('while')
    writeFileSync(join(dir, 'db/last.frm'), 'table')
    // Each way of noticing: inotify here, its thread, and the walk.
    for (let i = 0; i < 2000 && !files.has('db/last.frm'); i++) {
      capture.poll()
      await sleep(5)
    }
    await capture.idle()
    t.strictSame([...files.keys()].sort(), ['db/last.frm', 'db/t.frm'])
    t.match(warnings, [/link to a file of another user \(0; the datadir belongs to user 65534\)/])
  },
)

t.test('notices changes by itself, new directories too', async t => {
  const { dir, files, state, capture } = await setUp(t)
  await capture.sweep()
  capture.watch()
  await capture.idle()
  state.lsn = 500
  mkdirSync(join(dir, 'fresh'))
  writeFileSync(join(dir, 'fresh/db.opt'), 'charset')
  for (let i = 0; i < 2000 && !files.has('fresh/db.opt'); i++) {
    capture.poll()
    await sleep(5)
  }
  t.equal(files.get('fresh/db.opt')!.at(-1)!.content!.toString(), 'charset')
})

t.test('a file that changes while it is read is read again', async t => {
  const { dir, files, state, capture } = await setUp(t)
  const path = join(dir, 'table.MYD')
  writeFileSync(path, Buffer.alloc(FILE_PIECE_BYTES * 3, 'a'))
  await sleep(60)
  let grown = false
  state.onPiece = async () => {
    if (grown) return
    grown = true
    appendFileSync(path, 'the end')
  }
  await capture.sweep()
  await capture.idle()
  const versions = files.get('table.MYD')!
  t.ok(
    versions.every(version => version.content!.toString().endsWith('the end')),
    'no half version was completed',
  )
})

t.test('what the receiver has is not sent again after a restart', async t => {
  const { dir, files, capture } = await setUp(t)
  writeFileSync(join(dir, 'same'), 'same')
  writeFileSync(join(dir, 'other'), 'other')
  const { statSync } = await import('node:fs')
  const { mtimeMs } = statSync(join(dir, 'same'))
  capture.assume([
    { path: 'same', totalBytes: 4, mtimeMs: Math.floor(mtimeMs) },
    { path: 'other', totalBytes: 99, mtimeMs: Math.floor(mtimeMs) },
    { path: 'gone', totalBytes: 1, mtimeMs: 0 },
  ])
  await capture.sweep()
  t.strictSame([...files.keys()].sort(), ['gone', 'other'])
  t.equal(files.get('gone')![0]!.content, undefined)
})
