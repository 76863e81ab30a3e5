/**
 * What a leader was asked to have written: drafts of this turn of the event loop, which become one batch of entries, and then whoever
 * waits for one of them to be applied.
 */
import { internalError, type PalimpsestError, retryError } from '../shared/errors.ts'
import type { Applied } from './cell-state.ts'
import type { LogIndex, Term } from './core/types.ts'
import type { Draft } from './draft.ts'
import type { LogEntry } from './log/entry.ts'

interface Proposal {
  readonly draft: Draft
  readonly resolve: (result: Applied) => void
  readonly reject: (error: PalimpsestError) => void
}

interface Waiter extends Proposal {
  readonly term: Term
}

export class Proposals {
  private drafts: Proposal[] = []
  private draftBytes_ = 0
  /** Given to the core, which has not said yet what becomes of them. */
  private batch: Proposal[] = []
  /** By index. */
  private readonly waiters = new Map<number, Waiter>()

  /** Resolves with what applying the draft gave. */
  add(draft: Draft): Promise<Applied> {
    this.draftBytes_ += draft.payload.length
    return new Promise((resolve, reject) => {
      this.drafts.push({ draft, resolve, reject })
    })
  }

  /** Payload of those that have not been offered yet. */
  get draftBytes(): number {
    return this.draftBytes_
  }

  get hasDrafts(): boolean {
    return this.drafts.length > 0
  }

  /** Gives all drafts to `propose`, as a number of entries. Those that it does not have written (`written`) are refused. */
  offer(propose: (count: number) => void): void {
    this.batch = this.drafts
    this.drafts = []
    this.draftBytes_ = 0
    propose(this.batch.length)
    const left = this.batch
    this.batch = []
    for (const { reject } of left) reject(notLeading())
  }

  /** The batch at hand gets its places in the log. */
  written(first: LogIndex, count: number, term: Term): LogEntry[] {
    const { batch } = this
    if (batch.length !== count) throw internalError(`${count} entries for ${batch.length} proposals`)
    this.batch = []
    return batch.map((proposal, i) => {
      const index = (first + i) as LogIndex
      this.waiters.set(index, { ...proposal, term })
      return { ...proposal.draft, index, term, dropped: false }
    })
  }

  /** An entry was applied, whoever proposed it. */
  applied(entry: LogEntry, result: Applied): void {
    const waiter = this.waiters.get(entry.index)
    if (waiter === undefined) return
    this.waiters.delete(entry.index)
    if (waiter.term === entry.term) waiter.resolve(result)
    else waiter.reject(notLeading())
  }

  /** Entries after `last` will not be in this log. */
  dropAfter(last: LogIndex, error: PalimpsestError): void {
    for (const [index, waiter] of this.waiters)
      if (index > last) {
        this.waiters.delete(index)
        waiter.reject(error)
      }
  }

  failAll(error: PalimpsestError): void {
    for (const { reject } of this.drafts.splice(0)) reject(error)
    this.draftBytes_ = 0
    for (const { reject } of this.waiters.values()) reject(error)
    this.waiters.clear()
  }
}

export function notLeading(): PalimpsestError {
  return retryError('this node leads the cell no longer; what became of the request is not known: ask again')
}
