/** Who makes, branches, renames and deletes the timelines of a simulated cell, and sets writers and consumers to work on them. */
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { ModelTimeline } from './node-checker.ts'
import { Asker, claim, consume, write } from './node-clients.ts'
import type { SimCell } from './sim-cell.ts'
import type { SimRandom } from './world.ts'

const TIMELINES_MAX = 6

export class SimTimelines {
  private readonly cell: SimCell
  private names = 0

  constructor(cell: SimCell) {
    this.cell = cell
  }

  async make(random: SimRandom): Promise<void> {
    const name = `t${++this.names}`
    const timeline = new ModelTimeline(this.newId(random), name, random.int(1, 100_000))
    this.cell.checker.timelines.set(timeline.id, timeline)
    const asker = new Asker(this.cell, `maker of ${name}`, random)
    await asker.insist(connection =>
      connection.request({
        type: MessageType.WalCreate,
        timeline: timeline.id,
        startLsn: timeline.startLsn as Lsn,
        name,
      }),
    )
    await this.use(timeline, asker, random)
  }

  async goOn(random: SimRandom): Promise<void> {
    while (!this.cell.isHealing) {
      await this.cell.life.sleep(random.between(200, 2500))
      if (this.cell.isHealing) return
      // Its maker must have heard of it: who asks again for what has another name by now is refused.
      const alive = [...this.cell.checker.timelines.values()].filter(
        timeline => timeline.isAlive && timeline.isInUse,
      )
      const what = random.next()
      if (what < 0.2 && alive.length < TIMELINES_MAX) await this.make(random)
      else if (alive.length === 0) continue
      else if (what < 0.5 && alive.length < TIMELINES_MAX) await this.branch(random.pick(alive), random)
      else if (what < 0.7) await this.rename(random.pick(alive), random)
      else {
        const leaves = alive.filter(timeline => timeline.branches === 0)
        if (leaves.length > 0 && alive.length > 1) await this.delete(random.pick(leaves), random)
      }
    }
  }

  private newId(random: SimRandom): TimelineId {
    return Array.from({ length: 16 }, () => random.int(0, 255).toString(16).padStart(2, '0')).join(
      '',
    ) as TimelineId
  }

  /** Consumers and writers of a timeline that is there. */
  private async use(timeline: ModelTimeline, asker: Asker, random: SimRandom): Promise<void> {
    const consumers = Array.from({ length: random.int(1, 2) }, (_, n) => `c${n + 1}`)
    // All of them before the first goes on: nothing is kept for one that the cell does not know yet.
    for (const consumer of consumers) {
      timeline.consumers.set(consumer, timeline.startLsn)
      await asker.insist(connection => claim(connection, timeline, consumer, timeline.startLsn))
    }
    for (const consumer of consumers)
      if (random.chance(0.8))
        this.cell.go(`${consumer} of ${timeline.name}`, r => consume(this.cell, timeline, consumer, r))
    timeline.isInUse = true
    const writers = random.pick([1, 1, 2])
    for (let n = 1; n <= writers; n++)
      this.cell.go(`w${n} of ${timeline.name}`, r =>
        write(this.cell, timeline, `w${n}-${timeline.id.slice(0, 4)}`, r),
      )
  }

  private async branch(from: ModelTimeline, random: SimRandom): Promise<void> {
    const ends = [...from.chunks.values()].map(chunk => chunk.end).filter(end => end > from.neededFrom)
    if (ends.length === 0) return
    const name = `t${++this.names}`
    const timeline = new ModelTimeline(this.newId(random), name, 0, from)
    from.branches++
    this.cell.checker.timelines.set(timeline.id, timeline)
    const lsn = random.pick(ends) as Lsn
    const asker = new Asker(this.cell, `maker of ${name}`, random)
    const request = {
      type: MessageType.WalBranch,
      timeline: timeline.id,
      ancestor: from.id,
      lsn,
      name,
    } as const
    await asker.insist(connection => connection.request(request))
    await this.use(timeline, asker, random)
  }

  private async rename(timeline: ModelTimeline, random: SimRandom): Promise<void> {
    const name = `t${++this.names}`
    const asker = new Asker(this.cell, `renamer of ${timeline.name}`, random)
    await asker.insist(connection =>
      connection.request({ type: MessageType.WalRename, timeline: timeline.id, name }),
    )
    timeline.name = name
  }

  private async delete(timeline: ModelTimeline, random: SimRandom): Promise<void> {
    timeline.deleting = true
    const asker = new Asker(this.cell, `remover of ${timeline.name}`, random)
    await asker.insist(connection =>
      connection.request({ type: MessageType.WalDelete, timeline: timeline.id }),
    )
    if (timeline.ancestor !== undefined) timeline.ancestor.branches--
  }
}
