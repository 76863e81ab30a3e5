/** Those who wait for a timeline to reach an LSN. */
import type { Lsn } from '../../protocol/ids.ts'
import type { PalimpsestError } from '../shared/errors.ts'

/** Longer timers fire at once. */
const TIMER_MS_MAX = 2 ** 31 - 1

interface LsnWaiter {
  readonly lsn: Lsn
  readonly resolve: () => void
  readonly reject: (error: PalimpsestError) => void
  /** Nothing of it is left. */
  readonly settle: () => void
}

export class LsnWaiters {
  #waiters: LsnWaiter[] = []

  /**
   * Resolves with the first `reached` of at least `lsn`; rejects with what `late` says after `timeoutMs`, or when `signal` is
   * aborted: whoever asked has gone, and may have asked for weeks.
   */
  wait(lsn: Lsn, timeoutMs: number, late: () => PalimpsestError, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const giveUp = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1)
        waiter.settle()
        reject(late())
      }
      const timer = setTimeout(giveUp, Math.min(timeoutMs, TIMER_MS_MAX))
      const settle = (): void => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', giveUp)
      }
      const waiter: LsnWaiter = { lsn, resolve, reject, settle }
      this.#waiters.push(waiter)
      if (signal?.aborted) giveUp()
      else signal?.addEventListener('abort', giveUp, { once: true })
    })
  }

  get size(): number {
    return this.#waiters.length
  }

  reached(lsn: Lsn): void {
    if (this.#waiters.length === 0) return
    const here = this.#waiters.filter(waiter => waiter.lsn <= lsn)
    if (here.length === 0) return
    this.#waiters = this.#waiters.filter(waiter => waiter.lsn > lsn)
    for (const { settle, resolve } of here) {
      settle()
      resolve()
    }
  }

  /** It will never be reached. */
  rejectAll(why: (lsn: Lsn) => PalimpsestError): void {
    for (const { lsn, settle, reject } of this.#waiters.splice(0)) {
      settle()
      reject(why(lsn))
    }
  }
}
