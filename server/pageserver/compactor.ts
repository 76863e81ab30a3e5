import type { Timeline } from './timeline.ts'

export class Compactor {
  readonly #timeline: Timeline
  constructor(timeline: Timeline) {
    this.#timeline = timeline
  }
  wake(): void {
    void this.#timeline
  }
  async close(): Promise<void> {}
}
