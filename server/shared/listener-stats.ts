/** What a listener counts: plain fields, since every request touches them; read when metrics are scraped. */
import { messageName } from '../../protocol/messages.ts'
import type { ErrorKind } from './errors.ts'
import type { MetricsPart } from './metrics.ts'

/** How a request ended: answered, with an error of that kind, or its client had gone. */
export type RequestOutcome = 'ok' | ErrorKind | 'gone'

/** Why a connection was not had, or was cut by us. */
export type RefusalReason =
  /** As many as may be are there already. */
  | 'limit'
  /** Before the hello was done: no hello in time, another version, not authenticated, not our protocol. */
  | 'handshake'
  /** After it: a malformed frame. */
  | 'frame'
  /** It did not move in the middle of a frame or an answer. */
  | 'stalled'

export class ListenerStats {
  accepted = 0
  receivedBytes = 0
  sentBytes = 0
  readonly #refused = new Map<RefusalReason, number>()
  /** By message type, which is bounded: only types that are known become requests. */
  readonly #requests = new Map<number, Map<RequestOutcome, number>>()

  refuse(reason: RefusalReason): void {
    this.#refused.set(reason, (this.#refused.get(reason) ?? 0) + 1)
  }

  request(type: number, outcome: RequestOutcome): void {
    let outcomes = this.#requests.get(type)
    if (outcomes === undefined) {
      outcomes = new Map()
      this.#requests.set(type, outcomes)
    }
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  }

  register(
    part: MetricsPart,
    now: { readonly connections: () => number; readonly requestBytes: () => number },
  ): void {
    part.sampledGauge('open_connections', 'connections accepted and not yet gone', [], put =>
      put(now.connections()),
    )
    part.sampledGauge('request_bytes', 'memory of requests in flight', [], put => put(now.requestBytes()))
    part.sampledCounter('accepted_connections_total', 'connections that were let in', [], put =>
      put(this.accepted),
    )
    part.sampledCounter(
      'refused_connections_total',
      'connections refused or cut by this server',
      ['reason'],
      put => {
        for (const [reason, count] of this.#refused) put(count, reason)
      },
    )
    part.sampledCounter(
      'requests_total',
      'requests that ended, by message type; the outcome is ok, the kind of an error, or gone',
      ['type', 'outcome'],
      put => {
        for (const [type, outcomes] of this.#requests)
          for (const [outcome, count] of outcomes) put(count, messageName(type), outcome)
      },
    )
    part.sampledCounter('received_bytes_total', 'bytes of frames received', [], put =>
      put(this.receivedBytes),
    )
    part.sampledCounter('sent_bytes_total', 'bytes of frames handed to the socket', [], put =>
      put(this.sentBytes),
    )
  }
}
