/** Certificates, token keys and API keys for tests, in a directory of their own. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type CertificatePair, makeCa, makeNodeCertificate } from '../../server/keys/certificates.ts'
import { apiKeyLine, makeApiKey } from '../../server/shared/api-keys.ts'
import { type ClientSecurityFiles, openClientSecurity } from '../../server/shared/client-security.ts'
import type { ServerSecurityFiles } from '../../server/shared/server-security.ts'
import { makeSigningKey, publicJwk, readSigningKey, signToken } from '../../server/shared/tokens.ts'

export interface Teardown {
  teardown(run: () => unknown): void
}

export class Pki {
  readonly dir: string
  private readonly ca: CertificatePair
  private readonly signingKey = makeSigningKey()
  private files = 0

  private constructor(dir: string, ca: CertificatePair) {
    this.dir = dir
    this.ca = ca
  }

  static async make(t: Teardown): Promise<Pki> {
    const dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-pki-'))
    t.teardown(() => rmSync(dir, { recursive: true, force: true }))
    const pki = new Pki(dir, await makeCa('Test CA', 2))
    writeFileSync(pki.caFile, pki.ca.cert)
    await pki.writeNode('node')
    const jwk = await publicJwk(readSigningKey(pki.signingKey, 'token.key'))
    writeFileSync(pki.path('token-keys.json'), JSON.stringify({ keys: [jwk] }))
    return pki
  }

  path(name: string): string {
    return join(this.dir, name)
  }

  get caFile(): string {
    return this.path('ca.pem')
  }

  /** Writes NAME.pem and NAME.key, over what is there. */
  async writeNode(
    name: string,
    hosts = ['localhost', '127.0.0.1'],
    days = 30,
    nodes = ['sk1', 'sk2', 'sk3'],
  ): Promise<void> {
    const pair = await makeNodeCertificate(this.ca, name, hosts, days, nodes)
    writeFileSync(this.path(`${name}.key`), pair.key, { mode: 0o600 })
    writeFileSync(this.path(`${name}.pem`), pair.cert)
  }

  get serverTls(): ServerSecurityFiles {
    return { tlsCert: this.path('node.pem'), tlsKey: this.path('node.key') }
  }

  get serverFiles(): ServerSecurityFiles {
    return { ...this.serverTls, tokenKeys: this.path('token-keys.json') }
  }

  get clientCertificate(): ClientSecurityFiles {
    return { tlsCert: this.path('node.pem'), tlsKey: this.path('node.key') }
  }

  async token(scopes: string[], options: { name?: string; expiresAtMs?: number } = {}): Promise<string> {
    return await signToken(readSigningKey(this.signingKey, 'token.key'), {
      name: options.name ?? 'tester',
      scopes,
      expiresAtMs: options.expiresAtMs ?? Date.now() + 3600_000,
    })
  }

  /** A file with a token. */
  async tokenFile(scopes: string[], options: { name?: string; expiresAtMs?: number } = {}): Promise<string> {
    const file = this.path(`token-${++this.files}`)
    writeFileSync(file, `${await this.token(scopes, options)}\n`, { mode: 0o600 })
    return file
  }

  /** A key, and the line for the server's file. */
  apiKey(name: string, scopes: string[]): { key: string; line: string; file: string } {
    const key = makeApiKey()
    const file = this.path(`api-key-${++this.files}`)
    writeFileSync(file, key, { mode: 0o600 })
    return { key, line: apiKeyLine(name, scopes, key), file }
  }

  /** TLS with this CA and a token. */
  client(tokenFile?: string, more: ClientSecurityFiles = {}) {
    return openClientSecurity({ tlsCa: this.caFile, tokenFile, ...more })
  }
}
