/** Certificates and tokens of a run, made by `palimpsest keys` as an operator would. */
import { renameSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from 'node:tls'
import type { Address } from '../../protocol/dial.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { openClientSecurity } from '../../server/shared/client-security.ts'
import { palimpsestOk } from './process.ts'

const TOKENS = {
  admin: ['admin'],
  servers: ['peer', 'pageserver'],
} as const

export class Keys {
  readonly dir: string
  private readonly hosts: readonly string[]
  /** Of the agent: one timeline only. */
  private readonly agentScope: string

  private constructor(dir: string, hosts: readonly string[], agentScope: string) {
    this.dir = dir
    this.hosts = hosts
    this.agentScope = agentScope
  }

  static async make(dir: string, hosts: readonly string[], agentScope: string): Promise<Keys> {
    const keys = new Keys(dir, [...new Set([...hosts, 'localhost', '127.0.0.1'])], agentScope)
    await palimpsestOk(['keys', 'ca', '--out', dir])
    await palimpsestOk(['keys', 'token-key', '--out', dir])
    for (const name of ['server', 'client']) await keys.certificate(name)
    for (const name of ['admin', 'servers', 'agent']) await keys.token(name)
    return keys
  }

  private async certificate(name: string, ...more: string[]): Promise<void> {
    await palimpsestOk(['keys', 'node', name, '--ca', this.dir, '--host', this.hosts.join(','), ...more])
  }

  private async token(name: string): Promise<void> {
    const scopes = name === 'agent' ? [this.agentScope] : TOKENS[name as keyof typeof TOKENS]
    const made = this.path(`${name}-${Date.now()}`)
    await palimpsestOk([
      ...['keys', 'token', name, '--key', this.path('token.key'), '--out', made],
      ...scopes.flatMap(scope => ['--scope', scope]),
    ])
    renameSync(made, this.path(`${name}.token`))
  }

  /** New certificates and tokens for all, in the places of the old. */
  async renew(): Promise<void> {
    for (const name of ['server', 'client']) await this.certificate(name, '--renew')
    for (const name of ['admin', 'servers', 'agent']) await this.token(name)
  }

  private path(name: string): string {
    return join(this.dir, name)
  }

  /** Options of a server. */
  get serverArgs(): string[] {
    return [
      ...['--tls-cert', this.path('server.pem'), '--tls-key', this.path('server.key')],
      ...['--tls-client-ca', this.path('ca.pem'), '--token-keys', this.path('token-keys.json')],
      ...['--tls-ca', this.path('ca.pem'), '--token-file', this.path('servers.token')],
    ]
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
