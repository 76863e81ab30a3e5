/** Time that goes on by itself while somebody sleeps, faster than it does. `stepMsMax`: one sleep takes it on by no more. */
export function fastClock(stepMsMax = Number.POSITIVE_INFINITY) {
  let nowMs = 0
  return {
    wallTimeUs: () => 0,
    monotonicMs: () => nowMs,
    sleep: (ms: number) =>
      new Promise<void>(resolve => {
        setTimeout(() => {
          nowMs += Math.min(ms, stepMsMax)
          resolve()
        }, 1)
      }),
  }
}
