/**
 * Who leads a cell of safekeepers, asked of all its nodes at once, for one who waits for a node that says nothing. A process
 * that was stopped, or a machine that was cut off, does not say that it leads no longer: the others do, within a second of it.
 *
 * Silence alone moves nobody: a machine may only be slow, and another connection to it would be as slow. It takes the word of
 * a node that another one leads, and in a higher term than the silent one has told of. docs/consensus.md, "Finding the leader".
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

export class LeaderScout {
  private readonly connect: Connect<Channel>
  private readonly options: DialOptions
  private readonly clock: Clock
  private readonly lookAfterMs: number
  private readonly known = new Map<string, Address>()

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
    for (const address of addresses) this.known.set(formatAddress(address), address)
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
  async look(
    asked: Address,
    standing: Standing | undefined,
    signal: AbortSignal,
  ): Promise<Sighting | undefined> {
    const askedText = formatAddress(asked)
    this.known.set(askedText, asked)
    const answers = await this.ask(standing === undefined ? undefined : askedText, signal)
    const leaders = answers.filter(({ status }) => status.leader !== '' && status.leaderAddress !== '')
    if (leaders.length === 0) return undefined
    const { status: best } = leaders.reduce((a, b) => (b.status.term > a.status.term ? b : a))
    for (const { address } of best.members) this.learn(address)
    const own = answers.find(({ from }) => formatAddress(from) === askedText)?.status
    const nodeId = standing?.nodeId ?? own?.nodeId
    // It leads, or leads again.
    if (best.leader === nodeId) return undefined
    if (nodeId === undefined && best.leaderAddress === askedText) return undefined
    if (standing !== undefined && best.term <= standing.term) return undefined
    // Where it was reached just now is better than where it says that it is.
    const reached = answers.find(({ status }) => status.nodeId === best.leader)
    const address = reached?.from ?? this.learn(best.leaderAddress)
    return address && { nodeId: best.leader, address, term: best.term }
  }

  private learn(text: string): Address | undefined {
    if (text === '') return undefined
    try {
      const address = parseAddress(text)
      this.known.set(formatAddress(address), address)
      return address
    } catch {
      return undefined
    }
  }

  /** The answers of all that answer in time; `unawaited` is asked, but no time is spent on it. */
  private async ask(unawaited: string | undefined, signal: AbortSignal): Promise<Answer[]> {
    const answers: Answer[] = []
    const over = new AbortController()
    const end = () => over.abort(new Error('the round is over'))
    signal.addEventListener('abort', end)
    const all = [...this.known].map(async ([text, address]) => {
      const one = this.askOne(address, over.signal).then(
        status => {
          answers.push({ from: address, status })
        },
        () => {},
      )
      if (text !== unawaited) await one
    })
    await Promise.race([Promise.all(all), this.clock.sleep(ROUND_MS, over.signal)])
    signal.removeEventListener('abort', end)
    end()
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
