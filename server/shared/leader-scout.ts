/**
 * Who leads a cell of safekeepers, asked of all its nodes at once, for one who waits for a node that says nothing. A process
 * that was stopped, or a machine that was cut off, does not say that it leads no longer: the others do, within a second of it.
 *
 * Silence alone moves nobody: a machine may only be slow, and another connection to it would be as slow. It takes the word of
 * a node that another one leads, and in a higher term than the silent one has told of. docs/consensus.md, "Finding the leader".
 *
 * Several who wait may share a scout: those that want to know at about the same time get the answers of one round.
 */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, type DialOptions, formatAddress, parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import type { Clock } from './seams.ts'

/** So long is silence nothing to ask others about. */
export const LOOK_AFTER_MS = 1000
/** One round of questions takes no longer. */
const ROUND_MS = 1000
const AGAIN_MS_MIN = 1000
const AGAIN_MS_MAX = 4000
/** Many may wait for the same node: they do not all ask in the same moment. */
const JITTER = 0.25
/** The answers of a round are good for so long for others that look out for the same node. */
const FRESH_MS = 500

/** What is needed of a connection here; it may be one that others use as well. */
export type Channel = Pick<Connection, 'address' | 'request' | 'closed' | 'close'>

export type Connect<C extends Channel = Connection> = (address: Address, options: DialOptions) => Promise<C>

/** The node that one waits for, and the highest term that it has told of. */
export interface Standing {
  readonly nodeId: string
  readonly term: number
}

export interface Sighting {
  readonly nodeId: string
  readonly address: Address
  readonly term: number
}

export interface LookOut {
  /** That one waits for. */
  readonly asked: Address
  /** What it said of itself; undefined: nothing yet. */
  readonly standing: () => Standing | undefined
  /** For how long one has been waiting for it; undefined: one waits no longer. */
  readonly silentMs: () => number | undefined
  readonly signal: AbortSignal
  /** Another one leads. Called once. */
  readonly found: (sighting: Sighting) => void
}

interface Answer {
  readonly from: Address
  readonly status: CellStatusReply
}

/** Questions to all nodes, for all that want to know. */
interface Round {
  readonly answers: Promise<readonly Answer[]>
  /** Ends it. */
  readonly over: AbortController
  /** Who waits for it. */
  users: number
  endedMs: number | undefined
}

export class LeaderScout {
  private readonly connect: Connect<Channel>
  private readonly options: DialOptions
  private readonly clock: Clock
  private readonly lookAfterMs: number
  private readonly given: readonly Address[]
  /** The members that the last answers named. */
  private learnt: readonly Address[] = []
  /** By whom one waits for, and whether his answer is waited for. */
  private readonly rounds = new Map<string, Round>()

  /** `random` in [0, 1). */
  constructor(
    addresses: readonly Address[],
    connect: Connect<Channel>,
    options: DialOptions,
    clock: Clock,
    random: () => number = Math.random,
  ) {
    this.connect = connect
    this.options = options
    this.clock = clock
    this.lookAfterMs = LOOK_AFTER_MS * (1 + JITTER * random())
    this.given = addresses
  }

  /** Asks around, now and then, as long as nothing is heard; ends when another leader was found or nobody waits any more. */
  async watch(look: LookOut): Promise<void> {
    const { lookAfterMs, clock } = this
    const { signal } = look
    let nextMs = lookAfterMs
    let againMs = AGAIN_MS_MIN
    while (!signal.aborted) {
      const silentMs = look.silentMs()
      if (silentMs === undefined) return
      if (silentMs < lookAfterMs) {
        nextMs = lookAfterMs
        againMs = AGAIN_MS_MIN
      }
      if (silentMs < nextMs) {
        await clock.sleep(nextMs - silentMs, signal)
        continue
      }
      nextMs = silentMs + againMs
      againMs = Math.min(againMs * 2, AGAIN_MS_MAX)
      const sighting = await this.look(look.asked, look.standing(), signal)
      const stillMs = look.silentMs()
      // It may have spoken meanwhile.
      if (signal.aborted || sighting === undefined || stillMs === undefined || stillMs < lookAfterMs) continue
      look.found(sighting)
      return
    }
  }

  /** One round: the leader of the highest term that is told of, if that is not the node at `asked`. */
  private async look(
    asked: Address,
    standing: Standing | undefined,
    signal: AbortSignal,
  ): Promise<Sighting | undefined> {
    const askedText = formatAddress(asked)
    const answers = await this.answers(asked, standing === undefined, signal)
    const leaders = answers.filter(({ status }) => status.leader !== '' && status.leaderAddress !== '')
    if (leaders.length === 0) return undefined
    const { status: best } = leaders.reduce((a, b) => (b.status.term > a.status.term ? b : a))
    this.learnt = best.members.flatMap(({ address }) => parsed(address))
    const own = answers.find(({ from }) => formatAddress(from) === askedText)?.status
    const nodeId = standing?.nodeId ?? own?.nodeId
    // It leads, or leads again.
    if (best.leader === nodeId) return undefined
    if (nodeId === undefined && best.leaderAddress === askedText) return undefined
    if (standing !== undefined && best.term <= standing.term) return undefined
    // Where it was reached just now is better than where it says that it is.
    const reached = answers.find(({ status }) => status.nodeId === best.leader)
    const address = reached?.from ?? parsed(best.leaderAddress)[0]
    return address && { nodeId: best.leader, address, term: best.term }
  }

  /** Those of a round that is under way or has just ended, if there is one; else of a new one. None if `signal` is aborted. */
  private async answers(asked: Address, isAwaited: boolean, signal: AbortSignal): Promise<readonly Answer[]> {
    const key = `${formatAddress(asked)} ${isAwaited}`
    let round = this.rounds.get(key)
    if (round === undefined || !this.isFresh(round)) {
      for (const [text, { endedMs }] of this.rounds) if (endedMs !== undefined) this.rounds.delete(text)
      round = this.begin(asked, isAwaited)
      this.rounds.set(key, round)
    }
    round.users++
    const { promise: aborted, resolve } = Promise.withResolvers<readonly Answer[]>()
    const abort = () => resolve([])
    if (signal.aborted) abort()
    signal.addEventListener('abort', abort, { once: true })
    try {
      return await Promise.race([round.answers, aborted])
    } finally {
      signal.removeEventListener('abort', abort)
      // Nobody is left who wants to know.
      if (--round.users === 0 && round.endedMs === undefined) {
        round.over.abort()
        this.rounds.delete(key)
      }
    }
  }

  private isFresh({ endedMs }: Round): boolean {
    return endedMs === undefined || this.clock.monotonicMs() - endedMs <= FRESH_MS
  }

  private begin(asked: Address, isAwaited: boolean): Round {
    const over = new AbortController()
    const round: Round = {
      answers: this.ask(asked, isAwaited, over).finally(() => {
        round.endedMs = this.clock.monotonicMs()
      }),
      over,
      users: 0,
      endedMs: undefined,
    }
    return round
  }

  /** The answers of all that answer in time. No time is spent on the one `asked`, unless it is awaited. */
  private async ask(asked: Address, isAwaited: boolean, over: AbortController): Promise<Answer[]> {
    const known = new Map<string, Address>()
    for (const address of [...this.given, ...this.learnt, asked]) known.set(formatAddress(address), address)
    const unawaited = isAwaited ? undefined : formatAddress(asked)
    const answers: Answer[] = []
    const all = [...known].map(async ([text, address]) => {
      const one = this.askOne(address, over.signal).then(
        status => {
          answers.push({ from: address, status })
        },
        () => {},
      )
      if (text !== unawaited) await one
    })
    await Promise.race([Promise.all(all), this.clock.sleep(ROUND_MS, over.signal)])
    over.abort(new Error('the round is over'))
    return [...answers]
  }

  private async askOne(address: Address, signal: AbortSignal): Promise<CellStatusReply> {
    const connection = await this.connect(address, { ...this.options, deadlineMs: ROUND_MS, signal })
    const close = () => connection.close()
    signal.addEventListener('abort', close)
    try {
      if (signal.aborted) throw signal.reason
      return (await connection.request({ type: MessageType.CellStatus }, { deadlineMs: ROUND_MS })).message
    } finally {
      signal.removeEventListener('abort', close)
      close()
    }
  }
}

/** None, if it is no address. */
function parsed(text: string): Address[] {
  try {
    return [parseAddress(text)]
  } catch {
    return []
  }
}
