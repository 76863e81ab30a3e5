/** `palimpsest keys`: a development CA, certificates of nodes, tokens and API keys (docs/security.md). */
import { X509Certificate } from 'node:crypto'
import { appendFile, chmod, readFile, stat } from 'node:fs/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import type { CertificatePair } from '../keys/certificates.ts'
import { existsAlready, PRIVATE, PUBLIC, writeNew } from '../keys/key-files.ts'
import { ApiKeys, apiKeyLine, makeApiKey } from '../shared/api-keys.ts'
import { readPublic, readSecret } from '../shared/credential-files.ts'
import { CREDENTIAL_NAME, parseScopes } from '../shared/scopes.ts'
import { makeSigningKey, parseKeySet, publicJwk, readSigningKey, signToken } from '../shared/tokens.ts'
import { JSON_HELP, nodeNameArgument, pathArgument, printJson } from './common.ts'
import { addValidOptions, type ValidOptions, validMs } from './durations.ts'

const LOCAL_HOSTS = ['localhost', '127.0.0.1', '::1']
const DAY_MS = 24 * 3600_000
const CA_VALID = '3650d'
const NODE_VALID = '365d'
const TOKEN_VALID = '30d'
const NODE_NAME = /^[A-Za-z0-9_-]{1,32}$/

export function registerKeys(program: Command): void {
  const keys = program
    .command('keys')
    .description('make certificates, tokens and API keys')
    .addHelpText(
      'after',
      `
Nothing is overwritten; private files have mode 0600. Certificates are for development: in production, take
those of your own CA.

Example: TLS and two tokens for one machine
  palimpsest keys ca --out keys
  palimpsest keys node local --ca keys --node sk1,sk2,sk3
  palimpsest keys token-key --out keys
  palimpsest keys token me --key keys/token.key --scope admin --out keys/me.token
  palimpsest keys token servers --key keys/token.key --scope pageserver,peer:sk1,peer:sk2,peer:sk3 --out keys/servers.token
  palimpsest dev --tls-cert keys/local.pem --tls-key keys/local.key --token-keys keys/token-keys.json \\
                 --tls-ca keys/ca.pem --token-file keys/servers.token
  palimpsest status --tls-ca keys/ca.pem --token-file keys/me.token`,
    )

  jsonOption(
    addValidOptions(
      keys
        .command('ca')
        .description('a CA: DIR/ca.pem, and its private key DIR/ca.key')
        .requiredOption('--out <DIR>', 'directory to write to; made if there is none', pathArgument)
        .option('--name <NAME>', 'shown in certificates', 'Palimpsest development CA'),
      CA_VALID,
    ),
  ).action(async (options: { out: string; name: string; json: boolean } & ValidOptions) => {
    const days = validMs(options, CA_VALID) / DAY_MS
    const { makeCa } = await import('../keys/certificates.ts')
    const pair = await makeCa(options.name, days)
    const files = { key: join(options.out, 'ca.key'), cert: join(options.out, 'ca.pem') }
    await writeNewPair(files, pair)
    const expires = expiryOf(pair)
    report(
      options.json,
      { ...files, expires },
      `${files.cert} (give it to everybody) and ${files.key} (keep it to yourself)`,
    )
  })

  jsonOption(
    addValidOptions(
      keys
        .command('node')
        .argument('<name>', 'name of the node or client', nameArgument)
        .description(
          'a certificate for a server or a client, signed by a CA of "keys ca": NAME.pem, NAME.key',
        )
        .requiredOption('--ca <DIR>', 'directory of ca.pem and ca.key', pathArgument)
        .option(
          '--host <HOST[,HOST…]>',
          `names and IP addresses that it is reached under (default: ${LOCAL_HOSTS.join(', ')})`,
          hostsArgument,
        )
        .option(
          '--node <NAME[,NAME…]>',
          'safekeepers as which its holder may speak to others, if it is not <name> alone',
          nodesArgument,
        )
        .option(
          '--out <DIR>',
          'directory to write to; made if there is none (default: that of --ca)',
          pathArgument,
        )
        .option(
          '--renew',
          'replace NAME.pem and NAME.key, for the same hosts and nodes unless told otherwise; a running server takes the new ones by itself',
          false,
        ),
      NODE_VALID,
    ),
  ).action(
    async (
      name: string,
      options: {
        ca: string
        host?: string[]
        node?: string[]
        out?: string
        renew: boolean
        json: boolean
      } & ValidOptions,
    ) => {
      const days = validMs(options, NODE_VALID) / DAY_MS
      const [certFile, keyFile] = [join(options.ca, 'ca.pem'), join(options.ca, 'ca.key')]
      const ca = {
        cert: readPublic(certFile, "CA's certificate").toString('utf8'),
        key: readSecret(keyFile, "CA's private key").toString('utf8'),
      }
      const { makeNodeCertificate, namesIn } = await import('../keys/certificates.ts')
      const out = options.out ?? options.ca
      const files = { key: join(out, `${name}.key`), cert: join(out, `${name}.pem`) }
      const before = options.renew ? await textIfThere(files.cert) : undefined
      const old = before === undefined ? undefined : namesIn(before)
      const hosts = options.host ?? old?.hosts ?? LOCAL_HOSTS
      const nodes = options.node ?? old?.nodes ?? (NODE_NAME.test(name) ? [name] : [])
      const pair = await makeNodeCertificate(ca, name, hosts, days, nodes)
      await writeNewPair(files, pair, options.renew)
      const expires = expiryOf(pair)
      report(
        options.json,
        { ...files, hosts, nodes, expires },
        `${files.cert} and ${files.key}, for ${hosts.join(', ')}, valid until ${expires}`,
      )
    },
  )

  jsonOption(
    keys
      .command('token-key')
      .description('a key that signs tokens: DIR/token.key; its public half is added to DIR/token-keys.json')
      .requiredOption('--out <DIR>', 'directory to write to; made if there is none', pathArgument),
  ).action(async (options: { out: string; json: boolean }) => {
    const files = { key: join(options.out, 'token.key'), keySet: join(options.out, 'token-keys.json') }
    const before = await textIfThere(files.keySet)
    const others = before === undefined ? [] : parseKeySet(before, files.keySet).keys
    const pem = makeSigningKey()
    const jwk = await publicJwk(readSigningKey(pem, files.key))
    await writeNew(files.key, pem, PRIVATE)
    const set = `${JSON.stringify({ keys: [...others, jwk] }, null, 2)}\n`
    await writeNew(files.keySet, set, PUBLIC, before !== undefined)
    report(
      options.json,
      { ...files, keyId: jwk.kid },
      `${files.key} (signs tokens) and ${files.keySet} (for servers: --token-keys)`,
    )
  })

  jsonOption(
    addValidOptions(
      keys
        .command('token')
        .argument('<name>', 'whose token it is; shown in logs', nameArgument)
        .description('a signed token')
        .requiredOption('--key <FILE>', 'token.key of "keys token-key"', pathArgument)
        .requiredOption('--scope <SCOPE…>', SCOPE_HELP, collectScopes)
        .option('--out <FILE>', 'write to a file; otherwise to stdout', pathArgument),
      TOKEN_VALID,
    ),
  ).action(
    async (
      name: string,
      options: {
        key: string
        scope: string[]
        out?: string
        json: boolean
      } & ValidOptions,
    ) => {
      const expiresAtMs = Date.now() + validMs(options, TOKEN_VALID)
      const key = readSigningKey(readSecret(options.key, 'signing key').toString('utf8'), options.key)
      const token = await signToken(key, { name, scopes: options.scope, expiresAtMs })
      const about = { name, scopes: options.scope, expires: new Date(expiresAtMs).toISOString() }
      await handOut(token, options, about)
    },
  )

  jsonOption(
    keys
      .command('api-key')
      .argument('<name>', 'whose key it is; shown in logs', nameArgument)
      .description("an API key; a line with its hash is added to the server's file")
      .requiredOption(
        '--file <FILE>',
        'file for the server (--api-keys); made if there is none',
        pathArgument,
      )
      .requiredOption('--scope <SCOPE…>', SCOPE_HELP, collectScopes)
      .option('--out <FILE>', 'write to a file; otherwise to stdout, this once', pathArgument),
  ).action(async (name: string, options: { file: string; scope: string[]; out?: string; json: boolean }) => {
    const key = makeApiKey()
    const line = apiKeyLine(name, options.scope, key)
    const before = (await textIfThere(options.file)) ?? ''
    const start = before === '' || before.endsWith('\n') ? '' : '\n'
    // Refuses a name that is there already, and a file that the server would refuse.
    new ApiKeys(before + start + line, options.file)
    await handOut(key, options, { name, scopes: options.scope })
    await appendFile(options.file, start + line, { mode: PRIVATE })
    if (before === '') await chmod(options.file, PRIVATE)
  })
}

const SCOPE_HELP =
  'admin, peer:NODE, pageserver, read:ID, write:ID, read:* or write:* (ID: of a timeline, NODE: name of a safekeeper); repeat for several'

function jsonOption(command: Command): Command {
  return command.option('--json', JSON_HELP, false)
}

function nameArgument(value: string): string {
  if (!CREDENTIAL_NAME.test(value))
    throw new InvalidArgumentError(
      'a name has 1 to 64 of A-Z a-z 0-9 _ . @ - and begins with a letter or digit.',
    )
  return value
}

function hostsArgument(value: string): string[] {
  const hosts = value.split(',').map(host => host.trim())
  for (const host of hosts)
    if (isIP(host) === 0 && !/^(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})$/.test(host))
      throw new InvalidArgumentError(`"${host}" is neither a host name nor an IP address.`)
  return hosts
}

function nodesArgument(value: string): string[] {
  return value.split(',').map(name => nodeNameArgument(name.trim()))
}

function collectScopes(value: string, all: string[] = []): string[] {
  try {
    return [...all, ...parseScopes(value)]
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

async function text(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    throw new Error(`cannot read ${file}: ${(error as NodeJS.ErrnoException).code}`)
  }
}

async function textIfThere(file: string): Promise<string | undefined> {
  const there = await stat(file).catch(() => undefined)
  return there === undefined ? undefined : await text(file)
}

/** A secret goes to a file, or to stdout alone on its line so that it can be piped. */
async function handOut(
  secret: string,
  options: { out?: string; json: boolean },
  about: { name: string; scopes: string[]; expires?: string },
): Promise<void> {
  if (options.out !== undefined) await writeNew(options.out, `${secret}\n`, PRIVATE)
  if (options.json)
    printJson({ ...about, ...(options.out === undefined ? { secret } : { file: options.out }) })
  else if (options.out === undefined) process.stdout.write(`${secret}\n`)
  else {
    const until = about.expires === undefined ? '' : `, valid until ${about.expires}`
    console.log(`${options.out} for ${about.name}: ${about.scopes.join(' ')}${until}`)
  }
}

/** Both or none: a key beside another one's certificate would be of no use, and hide what is wrong. */
async function writeNewPair(
  files: { readonly key: string; readonly cert: string },
  pair: CertificatePair,
  renew = false,
): Promise<void> {
  if (!renew)
    for (const file of [files.key, files.cert])
      if ((await stat(file).catch(() => undefined)) !== undefined) throw existsAlready(file)
  await writeNew(files.key, pair.key, PRIVATE, renew)
  await writeNew(files.cert, pair.cert, PUBLIC, renew)
}

function expiryOf({ cert }: CertificatePair): string {
  return new X509Certificate(cert).validToDate.toISOString()
}

function report(json: boolean, files: Record<string, unknown>, line: string): void {
  if (json) printJson(files)
  else console.log(line)
}
