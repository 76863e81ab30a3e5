/** Works through lists, several items of each at a time. */

export interface WorkList<T> {
  readonly items: readonly T[]
  /** How many are worked on side by side. */
  readonly count: number
}

/**
 * After a failure nothing new is begun, what is under way is told to stop, and all of it has ended when this fails: nobody
 * writes any more to what is removed then.
 * @param outer ends the work from outside
 * @param work must look at its signal now and then
 */
export async function atOnce<T>(
  lists: readonly WorkList<T>[],
  outer: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const stop = new AbortController()
  const signal = outer ? AbortSignal.any([outer, stop.signal]) : stop.signal
  const worker = async (rest: T[]): Promise<void> => {
    for (let item = rest.shift(); item !== undefined && !stop.signal.aborted; item = rest.shift())
      await work(item, signal).catch(error => {
        stop.abort(error)
        throw error
      })
  }
  const workers = lists.flatMap(({ items, count }) => {
    const rest = [...items]
    return Array.from({ length: Math.min(count, rest.length) }, () => worker(rest))
  })
  await Promise.allSettled(workers)
  // The first failure; others may have come of the stop.
  if (stop.signal.aborted) throw stop.signal.reason
}
