/** A client's CA, certificate and token, from files. They are looked at again at each connect, and renewed if they changed. */
import { readFileSync, statSync } from 'node:fs'
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { invalidError } from './errors.ts'

export interface ClientSecurityFiles {
  /** One line: a signed token, or an API key. */
  readonly tokenFile?: string | undefined
  /** PEM, or `system`: the CAs that Node.js brings along. Without CA and certificate: plain TCP. */
  readonly tlsCa?: string | undefined
  readonly tlsCert?: string | undefined
  readonly tlsKey?: string | undefined
  readonly insecureToken?: boolean | undefined
}

const TOKEN_BYTES_MAX = 4096

/** @returns undefined if none of it was given  @throws PalimpsestError of kind invalid that names the file */
export function openClientSecurity(files: ClientSecurityFiles): ConnectionSecurity | undefined {
  const { tokenFile, tlsCa, tlsCert, tlsKey } = files
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw invalidError('--tls-cert and --tls-key belong together; one of them is missing')
  if (tlsCert !== undefined && tlsCa === undefined)
    throw invalidError(
      '--tls-cert needs --tls-ca: the CA that signed the servers\' certificates, or "system"',
    )
  if (tokenFile === undefined && tlsCa === undefined) return undefined
  const tls = tlsCa === undefined ? undefined : new ClientTls(tlsCa, tlsCert, tlsKey)
  // Mistakes show now, and not at the first of a thousand attempts to connect.
  tls?.context()
  if (tokenFile !== undefined) readToken(tokenFile)
  return {
    tls: tls && (() => tls.context()),
    token: tokenFile === undefined ? undefined : () => readToken(tokenFile),
    insecureToken: files.insecureToken,
  }
}

function readToken(file: string): string {
  const token = read(file).toString('utf8').trim()
  if (token === '' || token.length > TOKEN_BYTES_MAX || /[^\x21-\x7e]/.test(token))
    throw invalidError(`${file} does not hold one token or API key on one line`)
  return token
}

class ClientTls {
  private readonly files: { readonly ca: string; readonly cert?: string; readonly key?: string }
  private current: SecureContext | undefined
  private signature = ''

  constructor(ca: string, cert: string | undefined, key: string | undefined) {
    this.files = { ca, ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) }
  }

  /** Made anew if a file changed. Files that cannot be used, in the middle of a change perhaps, leave the old one. */
  context(): SecureContext {
    const signature = Object.values(this.files).map(signatureOf).join(' ')
    if (this.current !== undefined && signature === this.signature) return this.current
    try {
      this.current = this.make()
      this.signature = signature
    } catch (error) {
      if (this.current === undefined) throw error
    }
    return this.current
  }

  private make(): SecureContext {
    const { ca, cert, key } = this.files
    const material = {
      ca: ca === 'system' ? [...rootCertificates] : read(ca),
      ...(cert === undefined ? {} : { cert: read(cert) }),
      ...(key === undefined ? {} : { key: read(key) }),
      minVersion: 'TLSv1.2' as const,
    }
    try {
      return createSecureContext(material)
    } catch (error) {
      throw invalidError(
        `TLS cannot be set up with ${Object.values(this.files).join(', ')}: ${(error as Error).message}`,
      )
    }
  }
}

function read(file: string): Buffer {
  try {
    return readFileSync(file)
  } catch (error) {
    throw invalidError(`cannot read ${file}: ${(error as NodeJS.ErrnoException).code}`)
  }
}

function signatureOf(file: string): string {
  try {
    const { ino, size, mtimeMs, ctimeMs } = statSync(file)
    return `${ino}/${size}/${mtimeMs}/${ctimeMs}`
  } catch {
    return 'none'
  }
}
