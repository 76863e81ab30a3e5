/** Pieces of work one after the other, in the order in which they were asked for; one that fails does not stop the next. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve()

  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work)
    this.#last = result.catch(() => {})
    return result
  }

  /** Resolves when all that was asked for by now has been done. */
  async done(): Promise<void> {
    await this.#last
  }
}
