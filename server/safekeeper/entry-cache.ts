/** The newest entries of the log, in one piece up to its end, for whoever needs them at once: what is to be sent and to be applied. */
import type { LogIndex } from './core/types.ts'
import type { LogEntry } from './log/entry.ts'

const CACHE_BYTES_MAX = 32 * 1024 * 1024
const CACHE_ENTRIES_MAX = 65_536

export class EntryCache {
  private readonly entries = new Map<number, LogEntry>()
  /** The cache holds (first - 1, last]. */
  private first = 1
  private last = 0
  private bytes = 0

  /** The log is empty and begins after `index`. */
  reset(index: LogIndex): void {
    this.entries.clear()
    this.bytes = 0
    this.first = index + 1
    this.last = index
  }

  push(entry: LogEntry): void {
    if (entry.index !== this.last + 1) this.reset((entry.index - 1) as LogIndex)
    this.entries.set(entry.index, entry)
    this.last = entry.index
    this.bytes += entry.payload.length
    while (
      (this.bytes > CACHE_BYTES_MAX || this.entries.size > CACHE_ENTRIES_MAX) &&
      this.first < this.last
    ) {
      this.bytes -= this.entries.get(this.first)!.payload.length
      this.entries.delete(this.first++)
    }
  }

  get(index: number): LogEntry | undefined {
    return this.entries.get(index)
  }

  truncateAfter(index: LogIndex): void {
    for (; this.last > index && this.last >= this.first; this.last--) {
      this.bytes -= this.entries.get(this.last)!.payload.length
      this.entries.delete(this.last)
    }
    if (this.last < this.first) this.reset(index)
  }

  /** Entries [from, last], at most `bytesMax` of payload and at least one; undefined if the first is not here. */
  slice(from: number, last: number, bytesMax: number, entriesMax: number): LogEntry[] | undefined {
    let entry = this.entries.get(from)
    if (entry === undefined) return undefined
    const out: LogEntry[] = []
    let bytes = 0
    for (let index = from; ; ) {
      out.push(entry)
      bytes += entry.payload.length
      if (++index > last || bytes >= bytesMax || out.length >= entriesMax) return out
      entry = this.entries.get(index)
      if (entry === undefined) return out
    }
  }
}
