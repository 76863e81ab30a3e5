import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makeDataFolder } from '../../../server/commands/data-folder.ts'

t.test('made with all above it, for its owner and group alone', async t => {
  const path = join(t.testdir(), 'a', 'b')
  makeDataFolder(path)
  t.equal((statSync(path).mode & 0o777 & ~0o750).toString(8), '0')
  makeDataFolder(path)
})

t.test('what cannot be one', async t => {
  const dir = t.testdir({ file: '' })
  t.throws(() => makeDataFolder(join(dir, 'file')), {
    kind: 'invalid',
    message: /file is a file; give a directory$/,
  } as unknown as Error)
  t.throws(() => makeDataFolder(join(dir, 'file', 'x', 'y')), {
    message: /\/file is a file/,
  } as unknown as Error)
  if (existsSync('/proc/self'))
    t.throws(() => makeDataFolder('/proc/x/y'), {
      message: /cannot be used: .*give a(?:nother)? --data/,
    } as unknown as Error)
})
