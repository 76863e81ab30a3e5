/** What a cell has agreed on about its backup: a note in its state. docs/backup.md, "How it is made". */
import type { CellState } from './cell-state.ts'

/** The note in the cell's state that says how far the backup goes. */
export const BACKUP_NOTE = 'backup'
export interface BackupNote {
  /** Where, for people. */
  readonly store: string
  /** The log may give up what lies at or below. */
  readonly done: number
  /** Earlier releases recorded an upload here before they began it; nothing depends on that any more. */
  readonly intent: { readonly key: string; readonly first: number; readonly last: number } | null
}

/** What the cell has agreed on; undefined where there is no backup. */
export function backupNote(state: CellState): BackupNote | undefined {
  return state.notes.get(BACKUP_NOTE) as BackupNote | undefined
}
