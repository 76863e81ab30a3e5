/**
 * X.509 certificates for development: a CA, and certificates of nodes that serve as server's and as client's. ECDSA on
 * P-256, which every TLS library takes. In production, certificates come from the operator's own CA.
 */
// The library's dependency injection wants it to be there first.
import 'reflect-metadata'
import { createPrivateKey, KeyObject, webcrypto, X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import * as x509 from '@peculiar/x509'
import { invalidError } from '../shared/errors.ts'
import { NODE_URN } from '../shared/node-names.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const DAY_MS = 24 * 3600_000
/** Clocks of other machines may be behind. */
const BACKDATE_MS = 3600_000

x509.cryptoProvider.set(webcrypto as unknown as Parameters<typeof x509.cryptoProvider.set>[0])

export interface CertificatePair {
  /** PEM */
  readonly cert: string
  /** PEM, PKCS 8 */
  readonly key: string
}

type Keys = Awaited<ReturnType<typeof generate>>
async function generate() {
  return (await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair
}

function keyPem(keys: Keys): string {
  return KeyObject.from(keys.privateKey).export({
    type: 'pkcs8',
    format: 'pem',
  }) as string
}

function validity(days: number) {
  const now = Date.now()
  return { notBefore: new Date(now - BACKDATE_MS), notAfter: new Date(now + days * DAY_MS) }
}

/** A CA that signs nodes' certificates, and no other CA. */
export async function makeCa(name: string, days: number): Promise<CertificatePair> {
  const keys = await generate()
  const { keyCertSign, cRLSign } = x509.KeyUsageFlags
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    name: [{ CN: [name] }],
    ...validity(days),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(keyCertSign | cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { cert: `${certificate.toString('pem')}\n`, key: keyPem(keys) }
}

/**
 * A certificate for a node that is reached under `hosts` (names and IP addresses), and may speak as the safekeepers `nodes`.
 * @throws PalimpsestError of kind invalid if `ca` is no pair of a CA
 */
export async function makeNodeCertificate(
  ca: CertificatePair,
  name: string,
  hosts: readonly string[],
  days: number,
  nodes: readonly string[] = [],
): Promise<CertificatePair> {
  const issuer = new X509Certificate(ca.cert)
  const issuerKey = createPrivateKey(ca.key)
  if (!issuer.ca || !issuer.checkPrivateKey(issuerKey))
    throw invalidError('the CA certificate is none, or its private key belongs to another')
  if (issuerKey.asymmetricKeyDetails?.namedCurve !== 'prime256v1')
    throw invalidError('the CA was not made by "palimpsest keys ca": its key is not ECDSA on P-256')
  const signingKey = issuerKey.toCryptoKey(ALGORITHM, false, ['sign'])
  const issuerCertificate = new x509.X509Certificate(ca.cert)
  const keys = await generate()
  const { serverAuth, clientAuth } = x509.ExtendedKeyUsage
  const certificate = await x509.X509CertificateGenerator.create({
    subject: [{ CN: [name] }],
    issuer: issuerCertificate.subjectName,
    ...validity(days),
    publicKey: keys.publicKey,
    signingKey,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]),
      new x509.SubjectAlternativeNameExtension([
        ...hosts.map(host => ({ type: isIP(host) ? ('ip' as const) : ('dns' as const), value: host })),
        ...nodes.map(node => ({ type: 'url' as const, value: NODE_URN + node })),
      ]),
      await x509.AuthorityKeyIdentifierExtension.create(issuerCertificate.publicKey),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { cert: `${certificate.toString('pem')}\n`, key: keyPem(keys) }
}

/** What a certificate of `makeNodeCertificate` was made for. */
export function namesIn(cert: string): { readonly hosts: string[]; readonly nodes: string[] } {
  const items = new x509.X509Certificate(cert).getExtension(x509.SubjectAlternativeNameExtension)?.names.items
  const [hosts, nodes]: [string[], string[]] = [[], []]
  for (const { type, value } of items ?? [])
    if (type === 'dns' || type === 'ip') hosts.push(value)
    else if (type === 'url' && value.startsWith(NODE_URN)) nodes.push(value.slice(NODE_URN.length))
  return { hosts, nodes }
}
