/**
 * Which scope each request needs: one table, asked by the connection before a handler runs. A request without a row is
 * refused. docs/security.md tells the scopes; scopes.ts says which scope satisfies which need.
 *
 * Two kinds of requests cannot be judged from their own fields:
 * - a look-up by name is judged by its answer, where one who may not read everything gets the same refusal whether the
 *   timeline is absent or another's; and lists are cut down to what the asker may read;
 * - the pieces of an import name a session; whoever may write only some timelines must have begun it on this connection.
 *
 * A safekeeper passes requests on to the leader over a connection of its own. It has judged them here, by the scopes of the one
 * who asked; so the leader takes exactly those that are `forwarded` from any safekeeper of the cell, and no others.
 */
import type { TimelineId } from '../../protocol/ids.ts'
import {
  type Message,
  MessageType,
  messageName,
  type PeerNode,
  type Replies,
  type ReplyMessage,
} from '../../protocol/messages.ts'
import { invalidError, type PalimpsestError } from './errors.ts'
import { NODE_URN } from './node-names.ts'
import { type Need, type Principal, scopesFor } from './scopes.ts'

interface Rule<M> {
  readonly need: Need
  /** Safekeepers pass it on to their leader: it takes it from them, whatever their own scopes. */
  readonly forwarded?: true
  /** The safekeeper that the request says it comes from. */
  readonly node?: (request: M) => string
  /** The timeline that the request is about; undefined: about none, or about all. */
  readonly timeline?: (request: M) => TimelineId | undefined
  /** Another timeline that the request reads. */
  readonly ancestor?: (request: M) => TimelineId | undefined
  /** The import that the request belongs to. */
  readonly session?: (request: M) => number
  /** True if the answer is a list, or a timeline found by its name: judged when it is there. */
  readonly judgeAnswer?: (request: M) => boolean
}

type RuleTable = { readonly [K in keyof Replies as (typeof MessageType)[K]]?: Rule<Replies[K][0]> }

const about = (need: Need) => ({ need, timeline: (request: { timeline: TimelineId }) => request.timeline })
/** What goes to a cell's leader, through whichever safekeeper was asked. */
const toLeader = (need: Need) => ({ ...about(need), forwarded: true as const })
const change = { need: 'admin', forwarded: true } as const
const fromNode = {
  need: 'peer',
  node: (request: { node: PeerNode }) => request.node.nodeId.slice(0, request.node.nodeId.lastIndexOf('.')),
} as const
const inSession = { need: 'write', session: (request: { session: number }) => request.session } as const
const list = { need: 'any', judgeAnswer: () => true } as const

/** Rows beat families. */
const RULES: RuleTable = {
  [MessageType.Ping]: { need: 'any' },

  [MessageType.WalCreate]: toLeader('append'),
  [MessageType.WalOpen]: toLeader('append'),
  [MessageType.WalAppend]: toLeader('append'),
  [MessageType.WalSkip]: toLeader('append'),
  // Every safekeeper reads its own log to whoever asks.
  [MessageType.WalRead]: about('follow'),
  [MessageType.WalState]: toLeader('follow'),
  [MessageType.WalTrim]: toLeader('trim'),
  [MessageType.WalList]: { ...list, forwarded: true },
  [MessageType.WalDelete]: toLeader('admin'),
  [MessageType.WalShow]: toLeader('follow'),
  [MessageType.WalPartings]: about('follow'),
  [MessageType.WalRename]: toLeader('append'),
  [MessageType.WalBranch]: { ...toLeader('append'), ancestor: request => request.ancestor },
  // Redo that was kept for the consumer may then be trimmed.
  [MessageType.WalConsumerDrop]: toLeader('admin'),

  [MessageType.TimelineCreate]: about('write'),
  [MessageType.TimelineList]: list,
  [MessageType.TimelineShow]: {
    need: 'read',
    timeline: request => request.timeline,
    judgeAnswer: request => request.timeline === undefined,
  },
  [MessageType.TimelineBranch]: { ...about('write'), ancestor: request => request.ancestor },
  [MessageType.TimelineRename]: about('write'),
  [MessageType.TimelineBranches]: list,
  [MessageType.TimelineDelete]: about('admin'),
  [MessageType.GetPages]: about('read'),
  [MessageType.PageHistory]: about('read'),
  [MessageType.SpaceList]: about('read'),
  [MessageType.WaitLsn]: about('read'),
  [MessageType.LsnAtTime]: about('read'),
  [MessageType.TimeAtLsn]: about('read'),
  [MessageType.Checkpoint]: about('write'),

  [MessageType.ImportBegin]: about('write'),
  [MessageType.ImportSpace]: inSession,
  [MessageType.ImportPages]: inSession,
  [MessageType.ImportEnd]: inSession,
  [MessageType.FilePut]: about('write'),
  [MessageType.FileDelete]: about('write'),
  [MessageType.FileEpoch]: about('write'),
  [MessageType.FileList]: about('read'),
  [MessageType.FileGet]: about('read'),
  [MessageType.FileVersions]: about('read'),

  [MessageType.PeerHello]: fromNode,
  [MessageType.PeerSubscribe]: fromNode,

  // Clients look for the leader with it.
  [MessageType.CellStatus]: { need: 'any' },
  [MessageType.MemberAdd]: change,
  [MessageType.MemberRemove]: change,
  [MessageType.MemberReplace]: change,
  [MessageType.TransferLeadership]: change,
}

/** By the type's high byte. A message that nobody thought of is closed, not open. */
const FAMILIES = new Map<number, Rule<unknown>>([
  // Consensus among safekeepers.
  [0x04, { need: 'peer' }],
  // The cell: members, leadership.
  [0x05, { need: 'admin' }],
])

type AnyRule = Rule<never> & Rule<Message>

export function ruleOf(type: number): Rule<Message> | undefined {
  return ((RULES as Record<number, AnyRule | undefined>)[type] ?? FAMILIES.get(type >> 8)) as
    | Rule<Message>
    | undefined
}

/** Timelines of the imports that were begun on one connection, by session; bounded, the oldest gives way. */
export class ImportSessionsBegun {
  private readonly timelines = new Map<number, TimelineId>()

  add(session: number, timeline: TimelineId): void {
    this.timelines.set(session, timeline)
    if (this.timelines.size > 64) this.timelines.delete(this.timelines.keys().next().value as number)
  }

  timelineOf(session: number): TimelineId | undefined {
    return this.timelines.get(session)
  }
}

/** What is done to the answers of a request whose asker may not see all. */
export interface AnswerFilter {
  /** The answer as the asker may have it. @throws PalimpsestError in place of an answer that is not for it */
  answer(reply: ReplyMessage): ReplyMessage
  /** The error as the asker may have it. */
  error(error: PalimpsestError): PalimpsestError
}

/** Names of nodes in the certificate that the client showed; undefined where none is asked for. */
export type NodesCertified = () => readonly string[]

/**
 * Judges a request. @returns what to do to its answers, or undefined: nothing
 * @throws PalimpsestError of kind invalid if the principal may not ask for this
 */
export function authorize(
  principal: Principal,
  request: Message,
  sessions: ImportSessionsBegun,
  certified?: NodesCertified,
): AnswerFilter | undefined {
  const rule = ruleOf(request.type)
  if (rule === undefined)
    throw invalidError(`${messageName(request.type)} is refused: no scope is known that allows it`)
  const isPassedOn = rule.forwarded === true && principal.isPeer
  if (isPassedOn) return undefined
  if (rule.judgeAnswer?.(request) === true) {
    const seesAll = rule.need === 'any' ? principal.seesAll : principal.allows(rule.need, undefined)
    return seesAll ? undefined : new ForSome(principal, request)
  }
  const timeline = rule.session
    ? sessions.timelineOf(rule.session(request))
    : (rule.timeline?.(request) ?? undefined)
  if (!principal.allows(rule.need, timeline)) throw refusal(principal, rule, request, timeline)
  if (rule.node !== undefined) checkNode(principal, rule.node(request), certified)
  const ancestor = rule.ancestor?.(request)
  const ancestorNeed = rule.need === 'write' ? 'read' : 'follow'
  if (ancestor !== undefined && !principal.allows(ancestorNeed, ancestor))
    throw refusal(principal, { need: ancestorNeed }, request, ancestor)
  return request.type === MessageType.ImportBegin && !principal.allows('write', undefined)
    ? new RememberSession(sessions, request.timeline)
    : undefined
}

/** One safekeeper does not speak as another, by its token and by its certificate. */
function checkNode(principal: Principal, node: string, certified: NodesCertified | undefined): void {
  if (!principal.speaksAs(node))
    throw invalidError(
      `${describe(principal)} does not allow to speak as safekeeper ${node}: it takes peer:${node}`,
    )
  const names = certified?.()
  if (names === undefined || names.includes(node)) return
  throw invalidError(
    `the client certificate is not one of safekeeper ${node} (it names ${names.join(', ') || 'no node'}): ` +
      `make one with "palimpsest keys node ${node}", or with ${NODE_URN}${node} among its alternative names`,
  )
}

function refusal(
  principal: Principal,
  rule: Rule<Message>,
  request: Message,
  timeline: TimelineId | undefined,
): PalimpsestError {
  const what = rule.session
    ? `${messageName(request.type)} to an import that this connection did not begin`
    : timeline === undefined
      ? messageName(request.type)
      : `${messageName(request.type)} of timeline ${timeline}`
  return invalidError(
    `${describe(principal)} does not allow ${what}: it takes ${[scopesFor(rule.need, timeline), 'admin'].filter(Boolean).join(', or ')}`,
  )
}

function describe(principal: Principal): string {
  const { scopes } = principal
  const shown = scopes.slice(0, 4).join(' ') + (scopes.length > 4 ? ` and ${scopes.length - 4} more` : '')
  return `the token of "${principal.name}" (${shown})`
}

class ForSome implements AnswerFilter {
  private readonly principal: Principal
  private readonly request: Message

  constructor(principal: Principal, request: Message) {
    this.principal = principal
    this.request = request
  }

  answer(reply: ReplyMessage): ReplyMessage {
    const { principal } = this
    switch (reply.type) {
      case MessageType.WalListReply:
        return { ...reply, timelines: reply.timelines.filter(item => principal.sees(item.timeline)) }
      case MessageType.TimelineListReply:
        return { ...reply, timelines: reply.timelines.filter(item => principal.sees(item.timeline)) }
      case MessageType.TimelineBranchesReply:
        return { ...reply, branches: reply.branches.filter(item => principal.sees(item.timeline)) }
      case MessageType.TimelineStatus:
        if (principal.allows('read', reply.summary.timeline)) return reply
    }
    throw this.refusal()
  }

  error(error: PalimpsestError): PalimpsestError {
    return this.request.type === MessageType.TimelineShow ? this.refusal() : error
  }

  private refusal(): PalimpsestError {
    const name = this.request.type === MessageType.TimelineShow ? ` "${this.request.name}"` : ''
    return invalidError(
      `${describe(this.principal)} does not allow to read a timeline${name}, if there is one: it takes read:ID`,
    )
  }
}

class RememberSession implements AnswerFilter {
  private readonly sessions: ImportSessionsBegun
  private readonly timeline: TimelineId

  constructor(sessions: ImportSessionsBegun, timeline: TimelineId) {
    this.sessions = sessions
    this.timeline = timeline
  }

  answer(reply: ReplyMessage): ReplyMessage {
    if (reply.type === MessageType.ImportBegun) this.sessions.add(reply.session, this.timeline)
    return reply
  }

  error(error: PalimpsestError): PalimpsestError {
    return error
  }
}
