import { execFileSync } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readPublic, readSecret } from '../../../server/shared/credential-files.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { ServerSecurity } from '../../../server/shared/server-security.ts'
import { Pki } from '../../support/pki.ts'

const like = (fields: object) => fields as Error

t.test('what everybody can read is no secret, what everybody can write is nobody’s word', async t => {
  const directory = t.testdir({ file: 'contents' })
  const file = join(directory, 'file')
  for (const [mode, isSecret, isPublic] of [
    [0o600, true, true],
    [0o400, true, true],
    // A group may have it: that is how it is handed out.
    [0o640, true, true],
    [0o660, true, true],
    [0o644, false, true],
    [0o604, false, true],
    [0o602, false, false],
    [0o666, false, false],
  ] as const) {
    chmodSync(file, mode)
    for (const [read, isTaken] of [
      [readSecret, isSecret],
      [readPublic, isPublic],
    ] as const)
      if (isTaken) t.equal(read(file, 'key').toString(), 'contents', mode.toString(8))
      else
        t.throws(
          () => read(file, 'key'),
          like({ kind: 'invalid', message: /everybody .* the key .*: chmod o-rwx/ }),
        )
  }
})

t.test('what is no file of ours', async t => {
  const directory = t.testdir({ large: 'x'.repeat(5 << 20) })
  t.throws(() => readSecret(join(directory, 'none'), 'token'), like({ kind: 'invalid', message: /ENOENT/ }))
  t.throws(() => readSecret(directory, 'token'), like({ kind: 'invalid', message: /the token .*: EISDIR/ }))
  t.throws(
    () => readPublic(join(directory, 'large'), 'CA'),
    like({ kind: 'invalid', message: /5242880 bytes/ }),
  )
})

t.test('a token may come through a pipe', { skip: process.platform !== 'linux' }, async t => {
  const module = new URL('../../../server/shared/credential-files.ts', import.meta.url).href
  const script = `const { readSecret } = await import(${JSON.stringify(module)})
    process.stdout.write(readSecret(process.argv[1], 'token'))`
  const command = `exec "$0" --input-type=module -e "$1" <(echo piped)`
  t.equal(
    execFileSync('bash', ['-c', command, process.execPath, script], { encoding: 'utf8' }).trim(),
    'piped',
  )
})

t.test('a server does not start with such files', async t => {
  const pki = await Pki.make(t)
  chmodSync(pki.path('node.key'), 0o644)
  await t.rejects(
    ServerSecurity.open(pki.serverTls, silentLog),
    like({ kind: 'invalid', message: /everybody .* read the private key/ }),
  )
  chmodSync(pki.path('token-keys.json'), 0o666)
  await t.rejects(
    ServerSecurity.open({ tokenKeys: pki.path('token-keys.json') }, silentLog),
    like({ kind: 'invalid', message: /everybody .* change the file of token keys/ }),
  )
  chmodSync(pki.caFile, 0o666)
  t.throws(() => pki.client(), like({ message: /everybody .* change the CA/ }))
})
