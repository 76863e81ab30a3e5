/**
 * What a credential permits. A scope is one of
 *
 *     admin | peer:NODE | pageserver | read:TIMELINE | write:TIMELINE | read:* | write:*
 *
 * where TIMELINE is a timeline's id (names can be given to another timeline) and NODE a safekeeper's name (docs/security.md).
 */
import type { TimelineId } from '../../protocol/ids.ts'
import { invalidError } from './errors.ts'

/** What a request needs; `authorize.ts` says which request needs which. */
export type Need =
  /** A known client, whatever its scopes. */
  | 'any'
  /** To read one timeline's pages and files. */
  | 'read'
  /** To change one timeline on a page server. */
  | 'write'
  /** To read one timeline's log. */
  | 'follow'
  /** To write one timeline's log. */
  | 'append'
  /** To let a safekeeper forget redo. */
  | 'trim'
  /** To act as a safekeeper towards another; as which one, the rule says. */
  | 'peer'
  | 'admin'

/** Scopes in one credential. */
export const SCOPES_MAX = 64
export const CREDENTIAL_NAME = /^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$/

const SCOPE = /^(?:admin|peer:[A-Za-z0-9_-]{1,32}|pageserver|(?:read|write):(?:\*|[0-9a-f]{32}))$/

/** Parses scopes that stand between spaces or commas. @throws PalimpsestError of kind invalid */
export function parseScopes(text: string): string[] {
  const scopes = text.split(/[\s,]+/).filter(scope => scope !== '')
  if (scopes.length === 0)
    throw invalidError('no scope: give admin, peer:NODE, pageserver, read:ID or write:ID')
  if (scopes.length > SCOPES_MAX) throw invalidError(`${scopes.length} scopes; at most ${SCOPES_MAX}`)
  for (const scope of scopes) {
    if (/^peer(?::\*?)?$/.test(scope))
      throw invalidError(
        `"${scope}" does not say which safekeeper its holder is: give peer:NODE, where NODE is its --id (several, if one process is several)`,
      )
    if (!SCOPE.test(scope))
      throw invalidError(
        `"${scope.slice(0, 80)}" is not a scope: there are admin, peer:NODE, pageserver, read:ID, write:ID, read:* and write:*, ` +
          'where ID is the 32 hexadecimal digits that "palimpsest timeline show NAME" prints, and NODE the name of a safekeeper',
      )
  }
  return scopes
}

/** A client that proved who it is, and what it may do. */
export class Principal {
  /** For logs and errors. */
  readonly name: string
  readonly scopes: readonly string[]
  /** Milliseconds since 1970; undefined: until its key is withdrawn. */
  readonly expiresAtMs: number | undefined
  /** Names the key that vouched for it, so that its withdrawal can be noticed. */
  readonly vouchedBy: string
  private readonly admin: boolean
  /** Names of the safekeepers as which it may speak. */
  private readonly peers: ReadonlySet<string>
  private readonly pageServer: boolean
  private readonly reads: ReadonlySet<string>
  private readonly writes: ReadonlySet<string>

  /** `scopes` as `parseScopes` gives them. */
  constructor(
    name: string,
    scopes: readonly string[],
    options: { expiresAtMs?: number; vouchedBy?: string } = {},
  ) {
    this.name = name
    this.scopes = scopes
    this.expiresAtMs = options.expiresAtMs
    this.vouchedBy = options.vouchedBy ?? ''
    const of = (prefix: string) =>
      scopes.filter(scope => scope.startsWith(prefix)).map(scope => scope.slice(prefix.length))
    this.admin = scopes.includes('admin')
    this.peers = new Set(of('peer:'))
    this.pageServer = scopes.includes('pageserver')
    this.writes = new Set(of('write:'))
    this.reads = new Set([...of('read:'), ...this.writes])
  }

  /** `timeline` is undefined where the request does not name one; then only a scope for all of them suffices. */
  allows(need: Need, timeline: TimelineId | undefined): boolean {
    if (this.admin) return true
    switch (need) {
      case 'any':
        return true
      case 'read':
        return has(this.reads, timeline)
      case 'write':
        return has(this.writes, timeline)
      case 'follow':
        return this.pageServer || has(this.reads, timeline)
      case 'append':
        return has(this.writes, timeline)
      case 'trim':
        return this.pageServer
      case 'peer':
        return this.isPeer
      case 'admin':
        return false
    }
  }

  /** A safekeeper of the cell: what it passes on, it has judged by the scopes of the one who asked it. */
  get isPeer(): boolean {
    return this.peers.size > 0
  }

  /** Whether it may speak as the safekeeper of that name. */
  speaksAs(node: string): boolean {
    return this.admin || this.peers.has(node)
  }

  /** Whether the timeline may be in a list that it gets. */
  sees(timeline: TimelineId): boolean {
    return this.allows('follow', timeline)
  }

  get seesAll(): boolean {
    return this.allows('follow', undefined)
  }
}

function has(timelines: ReadonlySet<string>, timeline: TimelineId | undefined): boolean {
  return timelines.has('*') || (timeline !== undefined && timelines.has(timeline))
}

/** Scopes that would have sufficed, besides admin, for the text of a refusal; empty: only that. */
export function scopesFor(need: Need, timeline: TimelineId | undefined): string {
  const id = timeline ?? '*'
  switch (need) {
    case 'any':
      return 'any'
    case 'read':
      return `read:${id}`
    case 'write':
      return `write:${id}`
    case 'follow':
      return `read:${id} or pageserver`
    case 'append':
      return `write:${id}`
    case 'trim':
      return 'pageserver'
    case 'peer':
      return 'peer:NODE'
    case 'admin':
      return ''
  }
}

/** Who a client is where nobody has to prove anything: on loopback, or where the operator insisted. */
export const EVERYBODY = new Principal('everybody', ['admin'])
