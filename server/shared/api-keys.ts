/**
 * API keys: `plk_` and 32 random bytes in base64url. The server's file has a line for each,
 *
 *     name scopes sha256
 *
 * separated by white space, scopes by commas, the SHA-256 of the whole key in hexadecimal; `#` begins a comment.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { invalidError, PalimpsestError } from './errors.ts'
import { CREDENTIAL_NAME, Principal, parseScopes } from './scopes.ts'

const PREFIX = 'plk_'
const KEYS_MAX = 1000

interface Entry {
  readonly principal: Principal
  readonly hash: Buffer
}

export class ApiKeys {
  private readonly entries: readonly Entry[]

  /** Parses the file. `where` is for errors. @throws PalimpsestError of kind invalid, with the line's number */
  constructor(text: string, where: string) {
    this.entries = parse(text, where)
  }

  get size(): number {
    return this.entries.length
  }

  /** Who has this key. Every line is compared, in constant time. */
  find(key: string): Principal | undefined {
    const hash = hashOf(key)
    let found: Principal | undefined
    for (const entry of this.entries) if (timingSafeEqual(entry.hash, hash)) found = entry.principal
    return found
  }

  /** Whether a principal's line is still there, with the same scopes. */
  vouchesFor(principal: Principal): boolean {
    return this.entries.some(entry => entry.principal.vouchedBy === principal.vouchedBy)
  }
}

function parse(text: string, where: string): Entry[] {
  const entries: Entry[] = []
  const names = new Set<string>()
  text.split('\n').forEach((line, i) => {
    const bare = line.replace(/#.*/, '').trim()
    if (bare === '') return
    const at = `${where}, line ${i + 1}`
    const [name = '', scopes = '', sha256 = '', ...rest] = bare.split(/\s+/)
    if (rest.length > 0 || !CREDENTIAL_NAME.test(name) || !/^[0-9a-f]{64}$/i.test(sha256))
      throw invalidError(`${at}: not "name scope[,scope…] sha256-in-hexadecimal"`)
    if (names.has(name)) throw invalidError(`${at}: there is already a key "${name}"`)
    names.add(name)
    try {
      const vouchedBy = `api-key ${name} ${scopes} ${sha256.toLowerCase()}`
      entries.push({
        principal: new Principal(name, parseScopes(scopes), { vouchedBy }),
        hash: Buffer.from(sha256, 'hex'),
      })
    } catch (error) {
      throw error instanceof PalimpsestError ? invalidError(`${at}: ${error.message}`) : error
    }
  })
  if (entries.length > KEYS_MAX)
    throw invalidError(`${where} has ${entries.length} keys, more than ${KEYS_MAX}: use signed tokens`)
  return entries
}

export function isApiKey(token: string): boolean {
  return token.startsWith(PREFIX)
}

function hashOf(key: string): Buffer {
  return createHash('sha256').update(key).digest()
}

export function makeApiKey(): string {
  return PREFIX + randomBytes(32).toString('base64url')
}

/** The line for the server's file. */
export function apiKeyLine(name: string, scopes: readonly string[], key: string): string {
  return `${name} ${scopes.join(',')} ${hashOf(key).toString('hex')}\n`
}
