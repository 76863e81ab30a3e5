/** Terms and votes on their way to the disk, and the messages that must not leave before them, in order. */
import { internalError } from '../shared/errors.ts'
import type { HardState, Message, NodeId } from './core/types.ts'

export interface VoteQueueOptions {
  /** Durable when it resolves. */
  readonly save: (hardState: HardState) => Promise<void>
  readonly onPersisted: (hardState: HardState) => void
  readonly send: (to: NodeId, message: Message) => void
  readonly onFatal: (error: Error) => void
}

export class VoteQueue {
  private readonly options: VoteQueueOptions
  private readonly items: (
    | { readonly persist: HardState }
    | { readonly to: NodeId; readonly message: Message }
  )[] = []
  private running = false

  constructor(options: VoteQueueOptions) {
    this.options = options
  }

  persist(hardState: HardState): void {
    this.items.push({ persist: hardState })
    void this.run()
  }

  /** Sends when all that was to be persisted before is durable: at once if nothing is under way. */
  send(to: NodeId, message: Message): void {
    if (this.items.length > 0) this.items.push({ to, message })
    else this.options.send(to, message)
  }

  private async run(): Promise<void> {
    if (this.running) return
    this.running = true
    const { save, onPersisted, send, onFatal } = this.options
    try {
      for (;;) {
        const next = this.items[0]
        if (next === undefined) break
        if ('persist' in next) {
          await save(next.persist)
          this.items.shift()
          onPersisted(next.persist)
        } else {
          this.items.shift()
          send(next.to, next.message)
        }
      }
    } catch (error) {
      onFatal(
        internalError(
          `the vote of this node could not be made durable: ${(error as Error).message}; this node stops`,
          error,
        ),
      )
    } finally {
      this.running = false
    }
  }
}
