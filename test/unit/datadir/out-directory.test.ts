/** An export's directory: nobody else can put anything in the way. */
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { OutDirectory } from '../../../server/datadir/out-directory.ts'

const skip = process.getuid?.() !== 0 && 'only root can give files away'
const modeOf = (path: string): number => statSync(path).mode & 0o7777

t.test('made for its owner alone, and gone again', async t => {
  const path = join(t.testdir(), 'a/b')
  const out = await OutDirectory.claim(path)
  t.equal(modeOf(path), 0o700)
  writeFileSync(join(out.inside, 'x'), 'x')
  t.strictSame(readdirSync(path), ['x'])
  await out.discard()
  t.notOk(existsSync(path))
})

t.test('taken from others, and given back', { skip }, async t => {
  const path = t.testdir()
  chownSync(path, 65534, 65534)
  chmodSync(path, 0o2777)
  const out = await OutDirectory.claim(path)
  t.strictSame([statSync(path).uid, statSync(path).gid, modeOf(path)], [0, 65534, 0o2755])
  mkdirSync(join(out.inside, 'db'))
  await out.discard()
  t.strictSame([statSync(path).uid, modeOf(path), readdirSync(path)], [65534, 0o2777, []])
  const kept = await OutDirectory.claim(path)
  await kept.close()
  t.equal(statSync(path).uid, 0)
})

t.test('a directory in use is left as it is', { skip }, async t => {
  const path = t.testdir({ mysql: t.fixture('symlink', '/etc') })
  chownSync(path, 65534, 65534)
  await t.rejects(OutDirectory.claim(path), { message: /is not empty/ })
  t.equal(statSync(path).uid, 65534)
})

t.test('whoever moves it away changes nothing', { skip: !existsSync('/proc/self/fd') }, async t => {
  const dir = t.testdir({ elsewhere: {} })
  const out = await OutDirectory.claim(join(dir, 'out'))
  renameSync(join(dir, 'out'), join(dir, 'moved'))
  symlinkSync(join(dir, 'elsewhere'), join(dir, 'out'))
  writeFileSync(join(out.inside, 'x'), 'x')
  await out.close()
  t.strictSame(readdirSync(join(dir, 'elsewhere')), [])
  t.strictSame(readdirSync(join(dir, 'moved')), ['x'])
})

t.test('refused', async t => {
  const dir = t.testdir({ data: { ibdata1: '' }, file: '', link: t.fixture('symlink', 'nowhere') })
  const cases: [string, RegExp][] = [
    ['data/restored', /lies within the datadir .*data; give a directory elsewhere/],
    ['file', /is not a directory/],
    ['file/below', /is not a directory/],
    ['link', /there is a link to nothing/],
  ]
  for (const [path, message] of cases)
    await t.rejects(OutDirectory.claim(join(dir, path)), { kind: 'invalid', message }, path)
  await t.rejects(OutDirectory.claim('/proc/nothing/here'), { message: /cannot be made there/ })
})
