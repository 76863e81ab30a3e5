/** The backup of a simulated cell, as it goes: no log begins beyond its end, and a cell can be made from it at any time. */
import { BackupManifestObject, backupEnd } from '../../server/safekeeper/backup-manifest.ts'
import { backupNote } from '../../server/safekeeper/backup-note.ts'
import type { CellNode } from '../../server/safekeeper/node.ts'
import type { MemoryObjectStore } from '../support/memory-object-store.ts'
import { restoreAndCompare } from './restore.ts'
import type { SimCell } from './sim-cell.ts'

export class SimBackup {
  private readonly cell: SimCell
  restores = 0

  constructor(cell: SimCell) {
    this.cell = cell
  }

  /** Another cell is made from the backup as it is now, and compared with what is known. */
  async restore(): Promise<void> {
    const inner = this.cell.store?.inner
    const [host] = this.cell.up()
    if (inner === undefined || host === undefined) return
    const { cellId } = host.node!.status()
    const noted = Math.max(
      ...this.cell
        .up()
        .map(({ node }) => (node!.unready === 'it is in no cell yet' ? 0 : this.notedBy(node!))),
    )
    if (noted === 0 || cellId === '') return
    const chunks = await restoreAndCompare(this.cell, inner, cellId, noted)
    this.restores++
    this.cell.trace?.(`${this.cell.world.nowMs.toFixed(1)} restored up to ${noted}, ${chunks} chunks`)
  }

  private notedBy(node: CellNode): number {
    return backupNote(node.driver.state)?.done ?? 0
  }

  /** No log begins beyond the end of the cell's backup. */
  async look(store: MemoryObjectStore): Promise<void> {
    const begins = this.cell
      .up()
      .map(host => ({ host, ...host.node!.status() }))
      .filter(({ beginIndex }) => beginIndex > 1)
    if (begins.length === 0) return
    const manifest = await new BackupManifestObject(store, begins[0]!.cellId).load()
    const end = manifest === undefined ? 0 : backupEnd(manifest).index
    for (const { host, beginIndex } of begins)
      this.cell.checker.demand(beginIndex <= end + 1, () => {
        return `the log of ${host.name} begins at ${beginIndex}, but its backup ends at ${end}`
      })
  }
}
