/** Those who wait for a timeline to reach an LSN. */
import type { Lsn } from '../../protocol/ids.ts'
import type { PalimpsestError } from '../shared/errors.ts'

/** Longer timers fire at once. */
const TIMER_MS_MAX = 2 ** 31 - 1

interface LsnWaiter {
  readonly lsn: Lsn
  readonly resolve: () => void
  readonly reject: (error: PalimpsestError) => void
  readonly timer: NodeJS.Timeout
}

export class LsnWaiters {
  #waiters: LsnWaiter[] = []

  /** Resolves with the first `reached` of at least `lsn`; rejects with what `late` says after `timeoutMs`. */
  wait(lsn: Lsn, timeoutMs: number, late: () => PalimpsestError): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => {
          this.#waiters.splice(this.#waiters.indexOf(waiter), 1)
          reject(late())
        },
        Math.min(timeoutMs, TIMER_MS_MAX),
      )
      const waiter: LsnWaiter = { lsn, resolve, reject, timer }
      this.#waiters.push(waiter)
    })
  }

  reached(lsn: Lsn): void {
    if (this.#waiters.length === 0) return
    const here = this.#waiters.filter(waiter => waiter.lsn <= lsn)
    if (here.length === 0) return
    this.#waiters = this.#waiters.filter(waiter => waiter.lsn > lsn)
    for (const { timer, resolve } of here) {
      clearTimeout(timer)
      resolve()
    }
  }

  /** It will never be reached. */
  rejectAll(why: (lsn: Lsn) => PalimpsestError): void {
    for (const { lsn, timer, reject } of this.#waiters.splice(0)) {
      clearTimeout(timer)
      reject(why(lsn))
    }
  }
}
