/** Packs: not written yet by this release; one that is found is refused. */
import { corruptError } from '../../shared/errors.ts'
import type { Disk } from '../../shared/seams.ts'
import type { EntryRun, LogIndex, Term } from '../core/types.ts'
import type { LogEntry } from './entry.ts'

export class PackFile {
  readonly path: string = ''
  readonly firstIndex = 0 as LogIndex
  readonly lastIndex = 0 as LogIndex
  readonly prevTerm = 0 as Term
  retired = false

  static async readHeader(_disk: Disk, path: string): Promise<{ generation: number }> {
    throw corruptError(`${path}: packs are of a later release`)
  }

  static async open(
    _disk: Disk,
    path: string,
  ): Promise<{ pack: PackFile; summary: { runs: EntryRun[]; memberships: LogIndex[] } }> {
    throw corruptError(`${path}: packs are of a later release`)
  }

  async read(_from: number, _last: number, _bytesMax: number): Promise<LogEntry[]> {
    return []
  }

  retire(): void {
    this.retired = true
  }

  async close(): Promise<void> {}
}
