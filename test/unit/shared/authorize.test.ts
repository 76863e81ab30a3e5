import t from 'tap'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { ALL_CODECS, type Message, MessageType, type ReplyMessage } from '../../../protocol/messages.ts'
import {
  type AnswerFilter,
  authorize,
  ImportSessionsBegun,
  ruleOf,
} from '../../../server/shared/authorize.ts'
import { PalimpsestError } from '../../../server/shared/errors.ts'
import { EVERYBODY, Principal, parseScopes } from '../../../server/shared/scopes.ts'
import { SAMPLES } from '../../support/protocol-samples.ts'

const MINE = 'aa'.repeat(16) as TimelineId
const OTHER = 'bb'.repeat(16) as TimelineId
const principal = (scopes: string) => new Principal('tester', parseScopes(scopes))

/** What a server says, or what belongs to no request: none of these reaches a handler. */
const NOT_REQUESTS = new Set([
  ...['Hello', 'HelloOk', 'Pong', 'Cancel', 'Ok', 'ErrorReply', 'Redirect'],
  ...['WalOpened', 'WalAppended', 'WalData', 'WalGap', 'WalReadEnd', 'WalTrimmed', 'WalStateReply'],
  ...[
    'WalListReply',
    'WalBranched',
    'TimelineBranchesReply',
    'WalShowReply',
    'WalPartingsReply',
    'TimelineListReply',
    'TimelineStatus',
    'Pages',
  ],
  ...['PageHistoryReply', 'SpaceListReply', 'WaitLsnReply', 'LsnTime', 'CheckpointReply', 'ImportBegun'],
  ...['FileListReply', 'FileData', 'FileVersion'],
])

t.test('every message has a row, or its family has one, or it is no request', async t => {
  for (const { type, name } of ALL_CODECS)
    t.equal(
      ruleOf(type) !== undefined,
      !NOT_REQUESTS.has(name),
      `${name}: give it a row in server/shared/authorize.ts (or, if only servers send it, put it in this test's list)`,
    )
  t.equal(ruleOf(0x0499)?.need, 'peer')
  t.equal(ruleOf(0x0599)?.need, 'admin')
  t.equal(ruleOf(0x0199), undefined)
  t.throws(() => authorize(EVERYBODY, { type: 0x0199 } as unknown as Message, new ImportSessionsBegun()), {
    message: /0x0199 is refused/,
  })
})

function allowed(scopes: string, message: Message): boolean {
  try {
    authorize(principal(scopes), message, new ImportSessionsBegun())
    return true
  } catch (error) {
    if (error instanceof PalimpsestError && error.kind === 'invalid') return false
    throw error
  }
}

/** A sample of every request, made to be about `MINE` where it names a timeline. */
const requests = [
  ...new Map(
    SAMPLES.filter(({ message }) => ruleOf(message.type)).map(s => [s.message.type, s.message]),
  ).values(),
].map(message => {
  const about = 'timeline' in message ? { ...message, timeline: MINE } : message
  return ('ancestor' in about ? { ...about, ancestor: MINE } : about) as Message
})

const nameOf = (type: number) => ALL_CODECS.find(codec => codec.type === type)?.name ?? ''

t.test('what each scope allows', async t => {
  const names = (scopes: string) =>
    requests
      .filter(message => allowed(scopes, message))
      .map(message => ALL_CODECS.find(codec => codec.type === message.type)?.name ?? '')
      .sort()
  const any = ['CellStatus', 'Ping', 'TimelineBranches', 'TimelineList', 'WalList']
  const read = [
    ...any,
    ...['FileGet', 'FileList', 'FileVersions', 'GetPages', 'LsnAtTime', 'PageHistory', 'SpaceList'],
    ...['TimeAtLsn', 'TimelineShow', 'WaitLsn', 'WalPartings', 'WalRead', 'WalShow', 'WalState'],
  ]
  const append = ['WalAppend', 'WalBranch', 'WalCreate', 'WalOpen', 'WalRename', 'WalSkip']
  const write = [
    'Checkpoint',
    'FileDelete',
    'FileEpoch',
    'FilePut',
    'ImportBegin',
    'TimelineBranch',
    'TimelineCreate',
    'TimelineRename',
  ]
  t.same(names(`read:${MINE}`), read.sort())
  t.same(names(`read:*`), read)
  t.same(names(`write:${MINE}`), [...read, ...append, ...write].sort())
  const session = ['ImportEnd', 'ImportPages', 'ImportSpace']
  t.same(names('write:*'), [...read, ...append, ...write, ...session].sort())
  // By name, TimelineShow is judged by its answer; by id it takes read.
  t.same(names('pageserver'), [...any, 'WalPartings', 'WalRead', 'WalShow', 'WalState', 'WalTrim'].sort())
  // A safekeeper: consensus, and what it passes on for others; neither a log read to it nor anything of page servers.
  const passedOn = ['WalDelete', 'WalConsumerDrop', 'WalList', 'WalShow', 'WalState', 'WalTrim', ...append]
  const changes = ['MemberAdd', 'MemberRemove', 'MemberReplace', 'TransferLeadership']
  const consensus = ALL_CODECS.filter(({ type, name }) => type >> 8 === 4 && !NOT_REQUESTS.has(name)).map(
    ({ name }) => name,
  )
  // The samples are of another node: the next test has these.
  const asNode = ['PeerHello', 'PeerSubscribe']
  t.same(
    names('peer:none'),
    [...new Set([...any, ...passedOn, ...changes, ...consensus])]
      .filter(
        name => !asNode.includes(name) && requests.some(({ type }) => ruleOf(type) && nameOf(type) === name),
      )
      .sort(),
  )
  t.equal(names('admin').length, requests.length)
  t.same(names(`read:${OTHER}`), any)
  t.same(names(`write:${OTHER}`), any)
})

const request = (fields: object) => fields as Message
/** An error is compared with a pattern of some of its fields. */
const like = (fields: object) => fields as Error

t.test('a refusal says who, what and which scope, the same for what does not exist', async t => {
  const sessions = new ImportSessionsBegun()
  const getPages = request({ type: MessageType.GetPages, timeline: OTHER })
  t.throws(() => authorize(principal(`read:${MINE}`), getPages, sessions), {
    kind: 'invalid',
    message:
      `the token of "tester" (read:${MINE}) does not allow GetPages of timeline ${OTHER}: ` +
      `it takes read:${OTHER}, or admin`,
  })
  t.throws(
    () => authorize(principal('peer:a'), request({ type: 0x0599 }), sessions),
    like({ message: /: it takes admin$/ }),
  )
  // To branch takes to read what one branches from.
  const branch = { type: MessageType.WalBranch, timeline: MINE, ancestor: OTHER, lsn: 9 as Lsn, name: 'b' }
  t.throws(() => authorize(principal(`write:${MINE}`), branch, sessions), { message: /it takes read:bb/ })
  t.equal(authorize(principal(`write:${MINE} read:${OTHER}`), branch, sessions), undefined)
})

t.test('lists are cut down, look-ups by name judged by their answer', async t => {
  const sessions = new ImportSessionsBegun()
  const me = principal(`read:${MINE}`)
  const list = authorize(me, { type: MessageType.TimelineList }, sessions) as AnswerFilter
  const timelines = [{ timeline: MINE }, { timeline: OTHER }]
  for (const type of [MessageType.TimelineListReply, MessageType.WalListReply])
    t.same(list.answer({ type, timelines } as unknown as ReplyMessage), {
      type,
      timelines: [{ timeline: MINE }],
    })
  t.equal(authorize(principal('pageserver'), { type: MessageType.WalList }, sessions), undefined)

  const show = request({ type: MessageType.TimelineShow, timeline: undefined, name: 'prod' })
  const status = (timeline: TimelineId) =>
    ({ type: MessageType.TimelineStatus, summary: { timeline } }) as unknown as ReplyMessage
  const byName = authorize(me, show, sessions) as AnswerFilter
  t.same(byName.answer(status(MINE)), status(MINE))
  const refused = byName.error(new PalimpsestError('invalid', 'there is no timeline named prod'))
  t.match(refused.message, /does not allow to read a timeline "prod", if there is one/)
  t.throws(() => byName.answer(status(OTHER)), like({ message: refused.message, kind: refused.kind }))
  // Who may read logs may not therefore look at timelines.
  const pageServer = authorize(principal('pageserver'), show, sessions) as AnswerFilter
  t.throws(() => pageServer.answer(status(OTHER)))
  t.equal(authorize(principal('read:*'), show, sessions), undefined)
})

t.test('an import goes on only where it was begun', async t => {
  const me = principal(`write:${MINE}`)
  const mine = new ImportSessionsBegun()
  const begin = request({ type: MessageType.ImportBegin, timeline: MINE })
  const filter = authorize(me, begin, mine) as AnswerFilter
  filter.answer({ type: MessageType.ImportBegun, session: 7 })
  const pages = (session: number) => request({ type: MessageType.ImportPages, session })
  t.equal(authorize(me, pages(7), mine), undefined)
  t.throws(() => authorize(me, pages(8), mine), { message: /an import that this connection did not begin/ })
  t.throws(() => authorize(me, pages(7), new ImportSessionsBegun()))
  t.throws(() => authorize(principal(`write:${OTHER}`), pages(7), mine))
  t.equal(authorize(principal('write:*'), pages(9), new ImportSessionsBegun()), undefined)
  for (let session = 100; session < 200; session++) mine.add(session, MINE)
  t.equal(mine.timelineOf(7), undefined, 'what is remembered is bounded')
})

t.test('a safekeeper speaks as itself alone', async t => {
  const sessions = new ImportSessionsBegun()
  const from = (name: string) => ({ nodeId: `${name}.${'0'.repeat(16)}`, address: '', zone: '' })
  for (const say of [
    (name: string) => request({ type: MessageType.PeerHello, cellId: '', node: from(name) }),
    (name: string) =>
      request({ type: MessageType.PeerSubscribe, cellId: '', node: from(name), lane: 'control' }),
  ]) {
    t.equal(authorize(principal('peer:sk1'), say('sk1'), sessions), undefined)
    t.equal(
      authorize(principal('peer:sk1,peer:sk2'), say('sk2'), sessions),
      undefined,
      'one process may be several',
    )
    t.throws(
      () => authorize(principal('peer:sk1'), say('sk2'), sessions),
      like({
        kind: 'invalid',
        message: /\(peer:sk1\) does not allow to speak as safekeeper sk2: it takes peer:sk2/,
      }),
    )
    t.throws(() => authorize(principal('peer:sk'), say('sk1'), sessions), like({ kind: 'invalid' }))
    t.throws(() => authorize(principal('pageserver'), say('sk1'), sessions), like({ kind: 'invalid' }))
    // And by its certificate, where there is one: whoever vouches for nobody in particular, too.
    const certified = () => ['sk1', 'sk1.example']
    t.equal(authorize(principal('peer:sk1'), say('sk1'), sessions, certified), undefined)
    for (const who of [principal('peer:sk2'), EVERYBODY])
      t.throws(
        () => authorize(who, say('sk2'), sessions, certified),
        like({
          kind: 'invalid',
          message: /the client certificate is not one of safekeeper sk2 \(it names sk1, sk1.e/,
        }),
      )
    t.throws(
      () => authorize(EVERYBODY, say('sk1'), sessions, () => []),
      like({ message: /it names no node.*keys node sk1/ }),
    )
  }
  t.equal(
    authorize(EVERYBODY, { type: MessageType.WalList }, sessions, () => []),
    undefined,
    'clients need no name',
  )
})

t.test('what is passed on by a safekeeper is taken whole; what is not passed on, not at all', async t => {
  const sessions = new ImportSessionsBegun()
  t.equal(authorize(principal('peer:a'), { type: MessageType.WalList }, sessions), undefined, 'not cut down')
  for (const message of requests) {
    const rule = ruleOf(message.type)!
    const isTaken = rule.forwarded === true || rule.need === 'any' || (rule.need === 'peer' && !rule.node)
    t.equal(allowed('peer:none', message), isTaken, nameOf(message.type))
    // And nobody else's request passes by being one that is passed on.
    if (rule.forwarded && !rule.judgeAnswer) t.notOk(allowed(`read:${OTHER}`, message), nameOf(message.type))
  }
})

t.test('scopes', async t => {
  t.same(parseScopes(`admin, read:${MINE}  write:*`), ['admin', `read:${MINE}`, 'write:*'])
  for (const bad of ['', 'root', 'read:prod', 'read:', `read:${MINE.toUpperCase()}`, 'write', 'admin:*'])
    t.throws(() => parseScopes(bad), like({ kind: 'invalid' }))
  // Tokens that name no node were never given out by a release.
  for (const bad of ['peer', 'peer:', 'peer:*', 'peer:a/b'])
    t.throws(() => parseScopes(bad), like({ kind: 'invalid', message: /peer:NODE/ }))
  t.throws(() => parseScopes('admin '.repeat(65)))
})
