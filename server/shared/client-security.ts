/**
 * A client's CA, certificate and token, from files. They are looked at again at each connect, and renewed if they changed. A file
 * that cannot be used, in the middle of being replaced perhaps, leaves what was there before, which is told once.
 */
import { statSync } from 'node:fs'
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls'
import { type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { isApiKey } from './api-keys.ts'
import { readPublic, readSecret } from './credential-files.ts'
import { invalidError } from './errors.ts'
import { type Expiring, expiringCertificate, expiringToken } from './expiry.ts'
import { parseScopes } from './scopes.ts'

export interface ClientSecurityFiles {
  /** One line: a signed token, or an API key. */
  readonly tokenFile?: string | undefined
  /** PEM, or `system`: the CAs that Node.js brings along. Without CA and certificate: plain TCP. */
  readonly tlsCa?: string | undefined
  readonly tlsCert?: string | undefined
  readonly tlsKey?: string | undefined
  readonly insecureToken?: boolean | undefined
}

export interface ClientSecurity extends ConnectionSecurity {
  /** What is shown to servers at present, and expires. */
  readonly expiring: readonly Expiring[]
  /** The one timeline that the token may write to, as it says itself; undefined if it does not say, or says more. */
  readonly onlyTimeline: TimelineId | undefined
}

const TOKEN_BYTES_MAX = 4096
/** Whole ones of either kind: a key's 32 bytes and a signature's 64 are always so long. */
const SIGNED_TOKEN = /^[\w-]+\.[\w-]+\.[\w-]{86}$/
const API_KEY = /^plk_[\w-]{43}$/

/**
 * @param tell what is wrong with a file that was right before; to stderr unless given
 * @returns undefined if none of it was given  @throws PalimpsestError of kind invalid that names the file
 */
export function openClientSecurity(
  files: ClientSecurityFiles,
  tell: (problem: string) => void = problem => console.error(`warning: ${problem}`),
): ClientSecurity | undefined {
  const { tokenFile, tlsCa, tlsCert, tlsKey } = files
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw invalidError('--tls-cert and --tls-key belong together; one of them is missing')
  if (tlsCert !== undefined && tlsCa === undefined)
    throw invalidError(
      '--tls-cert needs --tls-ca: the CA that signed the servers\' certificates, or "system"',
    )
  if (tokenFile === undefined && tlsCa === undefined) return undefined
  const tls =
    tlsCa === undefined
      ? undefined
      : new Renewed(
          [tlsCa, tlsCert, tlsKey].filter(file => file !== undefined),
          () => makeContext(tlsCa, tlsCert, tlsKey),
          tell,
        )
  const token =
    tokenFile === undefined ? undefined : new Renewed([tokenFile], () => readToken(tokenFile), tell)
  // Mistakes show now, and not at the first of a thousand attempts to connect.
  tls?.get()
  token?.get()
  return {
    tls: tls && (() => tls.get().context),
    token: token && (() => token.get()),
    insecureToken: files.insecureToken,
    get onlyTimeline() {
      return token && onlyTimelineOf(token.get())
    },
    get expiring() {
      const ofToken = token && expiringToken(token.get(), tokenFile as string)
      return [tls?.get().certificate, ofToken].filter(one => one !== undefined)
    },
  }
}

function readToken(file: string): string {
  const token = readSecret(file, 'token').toString('utf8').trim()
  const isWhole = isApiKey(token) ? API_KEY.test(token) : SIGNED_TOKEN.test(token)
  if (token.length > TOKEN_BYTES_MAX || !isWhole)
    throw invalidError(`${file} does not hold one token or API key on one line`)
  return token
}

/** An API key says nothing of itself. What a signed token says is read unverified: it is the server that believes it or not. */
function onlyTimelineOf(token: string): TimelineId | undefined {
  try {
    const payload = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8'))
    const { scope } = payload as { scope?: unknown }
    const scopes = parseScopes(String(scope))
    const written = scopes.filter(each => each.startsWith('write:'))
    return written.length === 1 && written[0] !== 'write:*' && !scopes.includes('admin')
      ? toTimelineId(written[0]!.slice('write:'.length))
      : undefined
  } catch {
    return undefined
  }
}

/** What was made of files, made anew when one of them changed. */
class Renewed<T extends NonNullable<unknown>> {
  private readonly files: readonly string[]
  private readonly make: () => T
  private readonly tell: (problem: string) => void
  private current: T | undefined
  private signature = ''
  private told = ''

  constructor(files: readonly string[], make: () => T, tell: (problem: string) => void) {
    this.files = files
    this.make = make
    this.tell = tell
  }

  get(): T {
    const signature = this.files.map(signatureOf).join(' ')
    if (this.current !== undefined && signature === this.signature) return this.current
    try {
      this.current = this.make()
      this.signature = signature
      this.told = ''
    } catch (error) {
      if (this.current === undefined) throw error
      if (signature !== this.told) this.tell(`${(error as Error).message}; what it held before stays in use`)
      this.told = signature
    }
    return this.current
  }
}

interface ClientTls {
  readonly context: SecureContext
  readonly certificate: Expiring | undefined
}

function makeContext(caFile: string, certFile: string | undefined, keyFile: string | undefined): ClientTls {
  const ca = caFile === 'system' ? [...rootCertificates] : readPublic(caFile, 'CA')
  const cert = certFile === undefined ? undefined : readPublic(certFile, 'certificate')
  const key = keyFile === undefined ? undefined : readSecret(keyFile, 'private key')
  try {
    // OpenSSL takes a file without a certificate for a CA that has signed nothing.
    if (Buffer.isBuffer(ca)) expiringCertificate(ca, caFile)
    return {
      context: createSecureContext({
        ca,
        ...(cert === undefined ? {} : { cert }),
        ...(key === undefined ? {} : { key }),
        minVersion: 'TLSv1.2',
      }),
      certificate: cert && expiringCertificate(cert, certFile as string),
    }
  } catch (error) {
    const names = [caFile, certFile, keyFile].filter(file => file !== undefined)
    throw invalidError(`TLS cannot be set up with ${names.join(', ')}: ${(error as Error).message}`)
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
