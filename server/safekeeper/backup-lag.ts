/**
 * How much redo is committed and not in the backup. Every node knows it, not only the one that makes the backup: how far that goes
 * is an entry of the log, so whoever leads next has the right figure.
 */

/** Coarser than this is never told. */
const STEP_BYTES = 256 * 1024
/** Of marks that are kept; with more than that, each second one is given up. */
const MARKS_MAX = 1024

/** All redo up to the entry `index`, counted from the start of this process. */
interface Mark {
  readonly index: number
  readonly bytes: number
}

export class BackupLag {
  private total = 0
  private done = 0
  /** Ascending. */
  private marks: Mark[] = []

  /** Redo behind the backup's end; more by up to a step than there is while some of it is backed up and some is not. */
  get bytes(): number {
    return this.total - this.done
  }

  /** An entry was applied. */
  applied(index: number, payloadBytes: number): void {
    this.total += payloadBytes
    const last = this.marks.at(-1)
    if (last !== undefined && this.total - (this.marks.at(-2)?.bytes ?? this.done) < STEP_BYTES)
      this.marks.pop()
    this.marks.push({ index, bytes: this.total })
    if (this.marks.length > MARKS_MAX) this.marks = this.marks.filter((_, i) => i % 2 === 1)
  }

  /** The backup goes up to the entry `index`. */
  backedUp(index: number): void {
    let passed = 0
    while (passed < this.marks.length && this.marks[passed]!.index <= index) passed++
    if (passed === 0) return
    this.done = this.marks[passed - 1]!.bytes
    this.marks.splice(0, passed)
  }
}
