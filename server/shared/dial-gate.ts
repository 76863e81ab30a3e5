/**
 * So many at a time: whoever comes when all places are taken waits for his turn, first come first served. A page server
 * with thousands of timelines dials through one, so that a safekeeper that comes back is not met by all of them at once.
 */
export class DialGate {
  private readonly places: number
  private taken = 0
  private readonly queue: (() => void)[] = []

  constructor(places: number) {
    this.places = places
  }

  get waiting(): number {
    return this.queue.length
  }

  /** Runs it when there is a place. Not at all if `signal` is aborted before: then it rejects with its reason. */
  async pass<T>(run: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted()
    // A place that is given up goes straight to the next one, so `taken` counts it on.
    if (this.taken >= this.places) await this.turn(signal)
    else this.taken++
    try {
      return await run()
    } finally {
      const next = this.queue.shift()
      if (next === undefined) this.taken--
      else next()
    }
  }

  private turn(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const take = () => {
        signal?.removeEventListener('abort', leave)
        resolve()
      }
      const leave = () => {
        const at = this.queue.indexOf(take)
        if (at >= 0) this.queue.splice(at, 1)
        reject(signal?.reason)
      }
      this.queue.push(take)
      signal?.addEventListener('abort', leave, { once: true })
    })
  }
}
