/** Certificates and tokens of a run, made by `palimpsest keys` as an operator would. */
import { renameSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from 'node:tls'
import type { Address } from '../../protocol/dial.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { openClientSecurity } from '../../server/shared/client-security.ts'
import { palimpsestOk } from './process.ts'

export class Keys {
  readonly dir: string
  private readonly hosts: readonly string[]
  /** By the token's name. */
  private readonly scopes = new Map<string, string>()
  private readonly certificates = new Set<string>()

  private constructor(dir: string, hosts: readonly string[]) {
    this.dir = dir
    this.hosts = hosts
  }

  static async make(dir: string, hosts: readonly string[], agentScope: string): Promise<Keys> {
    const keys = new Keys(dir, [...new Set([...hosts, 'localhost', '127.0.0.1'])])
    await palimpsestOk(['keys', 'ca', '--out', dir])
    await palimpsestOk(['keys', 'token-key', '--out', dir])
    await keys.certificate('client')
    await keys.token('admin', 'admin')
    // One timeline only.
    await keys.token('agent', agentScope)
    return keys
  }

  /** Certificate and token of a server. @returns its options */
  async server(name: string, scope: string): Promise<string[]> {
    if (!this.certificates.has(name)) {
      await this.certificate(name)
      await this.token(name, scope)
    }
    return [
      ...['--tls-cert', this.path(`${name}.pem`), '--tls-key', this.path(`${name}.key`)],
      ...['--tls-client-ca', this.path('ca.pem'), '--token-keys', this.path('token-keys.json')],
      ...['--tls-ca', this.path('ca.pem'), '--token-file', this.path(`${name}.token`)],
    ]
  }

  private async certificate(name: string, ...more: string[]): Promise<void> {
    this.certificates.add(name)
    await palimpsestOk(['keys', 'node', name, '--ca', this.dir, '--host', this.hosts.join(','), ...more])
  }

  private async token(name: string, scope: string): Promise<void> {
    this.scopes.set(name, scope)
    const made = this.path(`${name}-${Date.now()}`)
    await palimpsestOk([
      ...['keys', 'token', name, '--key', this.path('token.key'), '--out', made],
      ...['--scope', scope],
    ])
    renameSync(made, this.path(`${name}.token`))
  }

  /** New certificates and tokens for all, in the places of the old. */
  async renew(): Promise<void> {
    for (const name of [...this.certificates]) await this.certificate(name, '--renew')
    for (const [name, scope] of [...this.scopes]) await this.token(name, scope)
  }

  private path(name: string): string {
    return join(this.dir, name)
  }

  clientArgs(token: 'admin' | 'agent'): string[] {
    const { tlsCa, tlsCert, tlsKey, tokenFile } = this.clientFiles(token)
    return ['--tls-ca', tlsCa, '--tls-cert', tlsCert, '--tls-key', tlsKey, '--token-file', tokenFile]
  }

  private clientFiles(token: string) {
    return {
      tlsCa: this.path('ca.pem'),
      tlsCert: this.path('client.pem'),
      tlsKey: this.path('client.key'),
      tokenFile: this.path(`${token}.token`),
    }
  }

  get admin(): ConnectionSecurity {
    return openClientSecurity(this.clientFiles('admin'))!
  }
}

/** The serial number of the certificate that is shown there. */
export function serialOf(address: Address): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...address, rejectUnauthorized: false }, () => {
      resolve(socket.getPeerX509Certificate()?.serialNumber ?? '')
      socket.destroy()
    }).on('error', reject)
  })
}
