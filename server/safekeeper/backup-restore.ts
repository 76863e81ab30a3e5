/**
 * A cell's backup, read: verified, or made into the data folder of a first safekeeper. docs/backup.md, "How it comes back".
 */
import { join } from 'node:path'
import { invalidError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { ObjectReader } from '../shared/object-store.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { type BackupManifest, backupEnd } from './backup-manifest.ts'
import { BACKUP_NOTE } from './backup-note.ts'
import { type BackupProgress, backupEntries, loadStart } from './backup-reader.ts'
import { commandEntry, recoveredCommand } from './cell-recover.ts'
import { decodeCommand } from './cell-state.ts'
import type { EntryId, LogIndex, NodeId, Term } from './core/types.ts'
import { CellLog } from './log/cell-log.ts'
import { EMPTY_CRC, type LogEntry, NO_PAYLOAD } from './log/entry.ts'
import { type NodeFile, NodeFiles } from './node-files.ts'

const APPEND_ENTRIES = 1024
const QUEUED_BYTES_MAX = 32 * 1024 * 1024
const WAIT_MS = 5
const FULL_ADVICE = 'make room on the disk, and run the restore again'

export interface BackupSummary {
  readonly manifest: BackupManifest
  readonly entries: number
  readonly bytes: number
  readonly rawBytes: number
}

/** Reads everything and checks every CRC. Throws kind corrupt, naming the object, for whatever is not right. */
export async function verifyBackup(
  store: ObjectReader,
  cellId: string,
  progress: BackupProgress = () => {},
): Promise<BackupSummary> {
  const { manifest } = await loadStart(store, cellId)
  let entries = 0
  for await (const entry of backupEntries(store, manifest, progress)) {
    entries++
    // Commands are checked as applying them would.
    if (entry.kind === 'command') decodeCommand(entry.payload)
  }
  return {
    manifest,
    entries,
    bytes: manifest.packs.reduce((sum, pack) => sum + pack.bytes, 0),
    rawBytes: manifest.packs.reduce((sum, pack) => sum + pack.rawBytes, 0),
  }
}

export interface RestoreOptions {
  readonly store: ObjectReader
  /** Of the backup. */
  readonly cellId: string
  /** Of the restored cell: another one. */
  readonly newCellId: string
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
  /** Made; must be empty, or hold what a restore that was cut short has left. */
  readonly dir: string
  readonly nodeId: NodeId
  readonly address: string
  readonly zone: string
  readonly segmentBytes?: number | undefined
  readonly progress?: BackupProgress | undefined
}

/**
 * Makes a data folder from which a safekeeper starts as the only member of a cell that has all that the backup has. node.json comes
 * first and says that the folder is unfinished, so that nothing starts from it and a repetition knows it for its own; it is replaced when
 * all is there. Throws kind invalid, and changes nothing, if there is anything else in the folder.
 */
export async function restoreBackup(options: RestoreOptions): Promise<BackupManifest> {
  try {
    return await restore(options)
  } catch (error) {
    const known = toPalimpsestError(error, `restoring into ${options.dir} failed`)
    const code = (error as NodeJS.ErrnoException).code
    throw code === 'ENOSPC' || code === 'EDQUOT'
      ? retryError(`${known.message}; ${FULL_ADVICE}`, error)
      : known
  }
}

async function restore(options: RestoreOptions): Promise<BackupManifest> {
  const { store, disk, dir, nodeId, address, zone, progress = () => {} } = options
  const files = new NodeFiles(disk, dir)
  const logDir = join(dir, 'log')
  await disk.makeDir(dir)
  await checkVacant(disk, files)
  const { manifest, base } = await loadStart(store, options.cellId)
  const self = { nodeId, address, zone }
  const node: NodeFile = {
    version: 1,
    nodeId,
    cellId: options.newCellId,
    seed: [self],
    recovering: false,
  }
  await files.saveNode({ ...node, unfinished: 'backup restore' })
  // What a restore that was cut short has left.
  await disk.remove(logDir)
  for (const index of await files.listSnapshots()) await files.removeSnapshot(index)

  base.membership = { voters: [nodeId], learners: [] }
  base.nodes.clear()
  base.nodes.set(nodeId, { address, zone })
  base.notes.delete(BACKUP_NOTE)
  await disk.makeDir(logDir)
  await CellLog.create({ disk, dir: logDir }, base.last)
  if (base.last.index > 0) await files.saveSnapshot(base.last.index, base.encode())
  await writeLog(options, manifest, logDir, progress)
  await files.createVote()
  await files.saveVote({ term: partingOf(manifest).term, votedFor: undefined })
  await files.saveNode(node)
  await files.close()
  return manifest
}

/** Of the file system, and of the lock that the caller holds. */
const NOBODYS = new Set(['lost+found', 'LOCK'])
const NAMES_TOLD = 5

/** Throws kind invalid if the folder holds anything but what an unfinished restore has left there. */
async function checkVacant(disk: Disk, files: NodeFiles): Promise<void> {
  const { dir } = files
  // A restore that was cut off at its very first file has left no more than a part of that.
  const names = (await disk.list(dir)).filter(name => !NOBODYS.has(name) && !/^node.*\.json\.tmp$/.test(name))
  if (names.length === 0) return
  const node = await files.loadNode('backup restore')
  if (node?.unfinished !== undefined) return
  if (node !== undefined)
    throw invalidError(
      `${dir} is the folder of safekeeper ${node.nodeId} already${node.cellId === '' ? '' : `, of cell ${node.cellId}`}; give an empty one`,
    )
  const told = names.sort().slice(0, NAMES_TOLD).join(', ')
  const more = names.length > NAMES_TOLD ? ` and ${names.length - NAMES_TOLD} more` : ''
  throw invalidError(`${dir} is not empty: it holds ${told}${more}; give an empty folder`)
}

async function writeLog(
  options: RestoreOptions,
  manifest: BackupManifest,
  logDir: string,
  progress: BackupProgress,
): Promise<void> {
  const { store, disk, clock, log: logger, segmentBytes } = options
  const { promise: failed, reject } = Promise.withResolvers<never>()
  failed.catch(() => {})
  const { log } = await CellLog.open({
    disk,
    clock,
    dir: logDir,
    log: logger,
    ...(segmentBytes !== undefined && { segmentBytes }),
    appliedTo: manifest.base.index,
    onFatal: reject,
  })
  // A node would wait for space; whoever restores can be told at once.
  log.onWritable = writable => {
    if (!writable) reject(retryError(`${log.lastError}; ${FULL_ADVICE}`))
  }
  const room = async (bytesMax: number): Promise<void> => {
    while (log.queuedBytes > bytesMax) await Promise.race([clock.sleep(WAIT_MS), failed])
  }
  try {
    let batch: LogEntry[] = []
    // Which are void, the new cell finds for itself.
    for await (const { isVoid: _, ...entry } of backupEntries(store, manifest, progress)) {
      if (entry.index <= manifest.base.index) continue
      batch.push(neutral(entry))
      if (batch.length < APPEND_ENTRIES) continue
      log.append(batch)
      batch = []
      await room(QUEUED_BYTES_MAX)
    }
    if (batch.length > 0) log.append(batch)
    const { index, term } = partingOf(manifest)
    const parting = recoveredCommand('backup', options.cellId, options.newCellId, clock)
    log.append([commandEntry(parting, index, term)])
    while (log.flushed.index < index) await Promise.race([clock.sleep(WAIT_MS), failed])
  } finally {
    await log.close()
  }
}

/** The entry behind the backup's end. From it on the new cell has a history of its own: docs/consensus.md, "After a lost majority". */
function partingOf(manifest: BackupManifest): EntryId {
  const { index, term } = backupEnd(manifest)
  return { index: (index + 1) as LogIndex, term: Math.max(term, 1) as Term }
}

/** What concerns the old cell's members and its own backup says nothing to the new one. */
function neutral(entry: LogEntry): LogEntry {
  if (entry.kind === 'membership') return noop(entry.index, entry.term)
  if (entry.kind !== 'command') return entry
  const command = decodeCommand(entry.payload)
  const isOld = command.do === 'node' || (command.do === 'note' && command.key === BACKUP_NOTE)
  return isOld ? noop(entry.index, entry.term) : entry
}

function noop(index: LogIndex, term: Term): LogEntry {
  return {
    index,
    term,
    kind: 'noop',
    timeline: undefined,
    epoch: 0 as LogEntry['epoch'],
    beginLsn: 0 as LogEntry['beginLsn'],
    endLsn: 0 as LogEntry['endLsn'],
    wallTimeUs: 0,
    payload: NO_PAYLOAD,
    payloadCrc: EMPTY_CRC,
    dropped: false,
  }
}
