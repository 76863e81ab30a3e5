/** What a listener needs to know of security: TLS, and who the clients are. Read from files, reloaded when they change. */
import { ApiKeys, isApiKey } from './api-keys.ts'
import { readPublic } from './credential-files.ts'
import { invalidError } from './errors.ts'
import type { Expiring } from './expiry.ts'
import type { Log } from './log.ts'
import { Reloading } from './reloading.ts'
import type { Principal } from './scopes.ts'
import { ServerTls } from './server-tls.ts'
import { TokenKeys } from './tokens.ts'

export interface ServerSecurityFiles {
  readonly tlsCert?: string | undefined
  readonly tlsKey?: string | undefined
  readonly tlsClientCa?: string | undefined
  /** A JSON Web Key Set with public keys. */
  readonly tokenKeys?: string | undefined
  readonly apiKeys?: string | undefined
}

/** Tells who a client is by what its hello shows. */
export class Authenticator {
  private readonly tokenKeys: Reloading<TokenKeys> | undefined
  private readonly apiKeys: Reloading<ApiKeys> | undefined

  constructor(tokenKeys: Reloading<TokenKeys> | undefined, apiKeys: Reloading<ApiKeys> | undefined) {
    this.tokenKeys = tokenKeys
    this.apiKeys = apiKeys
  }

  /** @throws PalimpsestError of kind invalid, which does not repeat the token */
  authenticate(token: string): Principal | Promise<Principal> {
    if (token === '')
      throw invalidError(
        'this server wants a token or an API key, and none was shown; give --token-file FILE',
      )
    if (isApiKey(token) || this.tokenKeys === undefined) {
      const principal = this.apiKeys?.value.find(token)
      if (principal !== undefined) return principal
      throw invalidError(
        isApiKey(token)
          ? 'this API key is not known here'
          : 'this server takes API keys only, and the token is none',
      )
    }
    return this.tokenKeys.value.verify(token)
  }

  /** Whether what vouched for a client is still in force. */
  isCurrent(principal: Principal): boolean {
    return (
      (this.tokenKeys?.value.vouchesFor(principal) ?? false) ||
      (this.apiKeys?.value.vouchesFor(principal) ?? false)
    )
  }

  /** Called when a key was added or removed. */
  onChange(run: () => void): void {
    this.tokenKeys?.onChange(run)
    this.apiKeys?.onChange(run)
  }

  async reload(): Promise<void> {
    await this.tokenKeys?.reload()
    await this.apiKeys?.reload()
  }

  close(): void {
    this.tokenKeys?.close()
    this.apiKeys?.close()
  }
}

export class ServerSecurity {
  readonly tls: ServerTls | undefined
  readonly authenticator: Authenticator | undefined

  constructor(tls: ServerTls | undefined, authenticator: Authenticator | undefined) {
    this.tls = tls
    this.authenticator = authenticator
  }

  /** @throws PalimpsestError of kind invalid that names the file */
  static async open(files: ServerSecurityFiles, log: Log, lookMs?: number): Promise<ServerSecurity> {
    const { tlsCert, tlsKey, tlsClientCa, tokenKeys, apiKeys } = files
    if ((tlsCert === undefined) !== (tlsKey === undefined))
      throw invalidError('--tls-cert and --tls-key belong together; one of them is missing')
    if (tlsClientCa !== undefined && tlsCert === undefined)
      throw invalidError('--tls-client-ca needs --tls-cert and --tls-key')
    const tls =
      tlsCert === undefined || tlsKey === undefined
        ? undefined
        : await ServerTls.open({ cert: tlsCert, key: tlsKey, clientCa: tlsClientCa }, log, lookMs)
    const open = async <T>(
      what: string,
      file: string | undefined,
      parse: new (text: string, where: string) => T,
    ) =>
      file === undefined
        ? undefined
        : await Reloading.open({
            what,
            files: [file],
            load: async () => new parse(readPublic(file, what).toString('utf8'), file),
            log,
            lookMs,
          })
    const keys = await open('file of token keys', tokenKeys, TokenKeys)
    const fixed = await open('file of API keys', apiKeys, ApiKeys)
    return new ServerSecurity(tls, keys || fixed ? new Authenticator(keys, fixed) : undefined)
  }

  /** True if clients must prove who they are, by token or certificate. */
  get identifies(): boolean {
    return this.authenticator !== undefined || this.tls?.requireClientCertificate === true
  }

  /** What is in force and expires. */
  get expiring(): readonly Expiring[] {
    return this.tls === undefined ? [] : [this.tls.expiring]
  }

  /** Reads all files again. Never throws. */
  async reload(): Promise<void> {
    await this.tls?.reload()
    await this.authenticator?.reload()
  }

  close(): void {
    this.tls?.close()
    this.authenticator?.close()
  }
}
