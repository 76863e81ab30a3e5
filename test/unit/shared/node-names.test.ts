/** Which nodes a certificate names: also one that was made to be misread. */
import type { X509Certificate } from 'node:crypto'
import t from 'tap'
import { nodesOf } from '../../../server/shared/node-names.ts'

const of = (subjectAltName: string | undefined, CN: string | string[] = []) =>
  nodesOf({ subjectAltName, toLegacyObject: () => ({ subject: { CN } }) } as unknown as X509Certificate)

t.test('alternative names and common names', async t => {
  t.same(of('DNS:a.example, IP Address:10.0.0.1, URI:urn:palimpsest:node:a', 'c'), ['a.example', 'a', 'c'])
  t.same(of(undefined, ['c', 'd']), ['c', 'd'])
  t.same(of('', 'c'), ['c'])
})

t.test('a name with a comma, which Node.js puts into quotes, is one name and none of a node', async t => {
  t.same(of('URI:"urn:x, URI:urn:palimpsest:node:b, DNS:c", DNS:d'), ['d'])
  t.same(of('DNS:"x\\", DNS:b, y", URI:urn:palimpsest:node:a'), ['"x\\", DNS:b, y"', 'a'])
})
