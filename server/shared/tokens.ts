/** Signed tokens: JSON Web Tokens with Ed25519, made and verified. docs/security.md has their contents. */
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
} from 'node:crypto'
import {
  createLocalJWKSet,
  errors,
  exportJWK,
  type JSONWebKeySet,
  type JWTPayload,
  jwtVerify,
  SignJWT,
} from 'jose'
import { invalidError } from './errors.ts'
import { CREDENTIAL_NAME, Principal, parseScopes } from './scopes.ts'

export const TOKEN_AUDIENCE = 'palimpsest'
export const TOKEN_TYPE = 'palimpsest+jwt'
/** Difference of clocks that is forgiven, seconds. */
const CLOCK_TOLERANCE_S = 30
const VERIFYING_KEYS_MAX = 64

/** The public keys of one key set. */
export class TokenKeys {
  readonly keyIds: readonly string[]
  private readonly find: ReturnType<typeof createLocalJWKSet>

  /** Parses a JSON Web Key Set. `where` is for errors. @throws PalimpsestError of kind invalid */
  constructor(text: string, where: string) {
    const set = parseKeySet(text, where)
    this.keyIds = set.keys.map(key => key.kid as string)
    this.find = createLocalJWKSet(set)
  }

  /** @throws PalimpsestError of kind invalid, whose text says what is wrong and never repeats the token */
  async verify(token: string, now = new Date()): Promise<Principal> {
    let payload: JWTPayload
    let keyId: string | undefined
    try {
      const verified = await jwtVerify(token, this.find, {
        algorithms: ['EdDSA', 'Ed25519'],
        audience: TOKEN_AUDIENCE,
        typ: TOKEN_TYPE,
        clockTolerance: CLOCK_TOLERANCE_S,
        requiredClaims: ['sub', 'scope', 'exp'],
        currentDate: now,
      })
      payload = verified.payload
      keyId = verified.protectedHeader.kid
    } catch (error) {
      throw invalidError(`the token is refused: ${whyNot(error)}`)
    }
    const { sub, scope, exp } = payload
    if (typeof sub !== 'string' || !CREDENTIAL_NAME.test(sub) || typeof scope !== 'string')
      throw invalidError('the token is refused: its "sub" or "scope" is not what docs/security.md says')
    return new Principal(sub, parseScopes(scope), {
      expiresAtMs: ((exp as number) + CLOCK_TOLERANCE_S) * 1000,
      vouchedBy: `token-key ${keyId ?? this.keyIds[0]}`,
    })
  }

  /** Whether the key that vouched for a token is still there. */
  vouchesFor(principal: Principal): boolean {
    return this.keyIds.some(id => principal.vouchedBy === `token-key ${id}`)
  }
}

function whyNot(error: unknown): string {
  if (error instanceof errors.JWTExpired) {
    const { exp } = error.payload
    return `it expired at ${new Date((exp as number) * 1000).toISOString()}; get a new one`
  }
  if (error instanceof errors.JWTClaimValidationFailed) return `its "${error.claim}" is missing or wrong`
  if (error instanceof errors.JWKSNoMatchingKey)
    return 'it was signed with a key that this server does not know'
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'its signature is wrong'
  if (error instanceof errors.JOSEAlgNotAllowed) return 'its algorithm is not EdDSA'
  return 'it is neither a signed token nor an API key of this server'
}

/** @throws PalimpsestError of kind invalid */
export function parseKeySet(text: string, where: string): JSONWebKeySet {
  let set: JSONWebKeySet
  try {
    set = JSON.parse(text) as JSONWebKeySet
  } catch (error) {
    throw invalidError(`${where} is not JSON: ${(error as Error).message}`)
  }
  if (!Array.isArray(set?.keys) || set.keys.length === 0 || set.keys.length > VERIFYING_KEYS_MAX)
    throw invalidError(`${where} is not a JSON Web Key Set with 1 to ${VERIFYING_KEYS_MAX} keys`)
  const ids = new Set<string>()
  set.keys.forEach((key, i) => {
    const which = `${where}, key ${i + 1}`
    if (key.kty !== 'OKP' || key.crv !== 'Ed25519' || typeof key.x !== 'string')
      throw invalidError(`${which} is not an Ed25519 key (kty OKP, crv Ed25519, x)`)
    if ('d' in key)
      throw invalidError(
        `${which} is a private key: a server needs the public half only; remove "d" from the file`,
      )
    if (typeof key.kid !== 'string' || key.kid === '' || ids.has(key.kid))
      throw invalidError(`${which} has no "kid", or one that another key has`)
    ids.add(key.kid)
    try {
      createPublicKey({ key, format: 'jwk' })
    } catch (error) {
      throw invalidError(`${which} cannot be used: ${(error as Error).message}`)
    }
  })
  return set
}

/** A new signing key, as PEM (PKCS 8). */
export function makeSigningKey(): string {
  return generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }) as string
}

/** Reads a signing key. @throws PalimpsestError of kind invalid */
export function readSigningKey(pem: string, where: string): KeyObject {
  let key: KeyObject
  try {
    key = createPrivateKey(pem)
  } catch (error) {
    throw invalidError(`${where} is not a private key in PEM: ${(error as Error).message}`)
  }
  if (key.asymmetricKeyType !== 'ed25519')
    throw invalidError(`${where} is a key of type ${key.asymmetricKeyType}; tokens are signed with Ed25519`)
  return key
}

/** The public half, as it stands in a key set. Its id is derived from the key, so that it can be found again. */
export async function publicJwk(key: KeyObject): Promise<Record<string, unknown> & { kid: string }> {
  const jwk = await exportJWK(createPublicKey(key))
  const kid = createHash('sha256')
    .update(jwk.x as string)
    .digest('base64url')
    .slice(0, 16)
  return { ...jwk, kid, alg: 'EdDSA', use: 'sig' }
}

export interface TokenClaims {
  readonly name: string
  readonly scopes: readonly string[]
  /** Milliseconds since 1970. */
  readonly expiresAtMs: number
}

export async function signToken(key: KeyObject, claims: TokenClaims, now = new Date()): Promise<string> {
  const { kid } = await publicJwk(key)
  return await new SignJWT({ scope: claims.scopes.join(' ') })
    .setProtectedHeader({ alg: 'EdDSA', typ: TOKEN_TYPE, kid })
    .setAudience(TOKEN_AUDIENCE)
    .setSubject(claims.name)
    .setIssuedAt(now)
    .setExpirationTime(Math.floor(claims.expiresAtMs / 1000))
    .sign(key)
}
