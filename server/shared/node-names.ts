/** Which safekeepers a certificate is one of: how their names stand in it. docs/security.md, "Peers". */
import type { X509Certificate } from 'node:crypto'

/** Before a node's name, as an alternative name of kind URI. */
export const NODE_URN = 'urn:palimpsest:node:'

/** What stands between ", ", but not within quotes. */
const ONE_NAME = /(?! )(?:[^",]|"(?:[^"\\]|\\.)*")+/g

/** Its common name, the names of hosts, and those after NODE_URN; whatever of it is no node's name does no harm. */
export function nodesOf(certificate: X509Certificate): string[] {
  const names: string[] = []
  // Node.js writes a name with a comma in it as a string of JSON, so that none can pass for two.
  for (const [name] of (certificate.subjectAltName ?? '').matchAll(ONE_NAME))
    if (name.startsWith(`URI:${NODE_URN}`)) names.push(name.slice(4 + NODE_URN.length))
    else if (name.startsWith('DNS:')) names.push(name.slice(4))
  const common: unknown = certificate.toLegacyObject().subject?.CN
  for (const name of Array.isArray(common) ? common : [common]) if (typeof name === 'string') names.push(name)
  return [...new Set(names)]
}
