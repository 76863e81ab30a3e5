/** `palimpsest member recover`: the way out after a majority of a cell's disks is lost for good. Offline, on a survivor's folder. */
import { randomBytes } from 'node:crypto'
import type { Command } from 'commander'
import { type BackupManifest, backupEnd } from '../safekeeper/backup-manifest.ts'
import { loadBackup } from '../safekeeper/backup-reader.ts'
import { type Recovered, recoverCell } from '../safekeeper/cell-recover.ts'
import { nameOf } from '../safekeeper/node-files.ts'
import { lookAtSurvivor, newestOf, type Survivor } from '../safekeeper/survivor.ts'
import { directoryOwner, lockDirectory } from '../shared/dir-lock.ts'
import { invalidError } from '../shared/errors.ts'
import { formatTime } from '../shared/format.ts'
import { createLog } from '../shared/log.ts'
import { nodeClock, nodeDisk } from '../shared/node-seams.ts'
import { pathArgument, printJson, UsageError } from './common.ts'
import { addS3Options, openStoreToRead, type S3CommandOptions } from './store-options.ts'

interface RecoverCommandOptions extends S3CommandOptions {
  data: string[]
  backup?: string
  yes: boolean
  json: boolean
}

/** What the cell's backup has, beside the survivors. */
interface BackupReach {
  readonly store: string
  readonly manifest: BackupManifest
}

export function registerMemberRecover(member: Command): void {
  addS3Options(
    member
      .command('recover')
      .description(
        "make a cell of its own of a survivor's folder, when a majority of the members is lost for good; without --yes it only tells what there is",
      )
      .requiredOption(
        '--data <DIR>',
        'data folder of a safekeeper that is stopped; several times to compare survivors',
        (dir: string, dirs: string[] | undefined) => [...(dirs ?? []), pathArgument(dir)],
      )
      .option(
        '--backup <DIR|s3://BUCKET/PREFIX>',
        "also tells how far the cell's backup goes, and does nothing if it goes further",
      )
      .option('--yes', 'do it: the other members never come back', false)
      .option('--json', 'machine-readable output', false),
  )
    .addHelpText(
      'after',
      `
Look at every survivor first, here or on its own machine: the one whose last entry has the highest term, and of these the highest index, has all that the others have. Its log is kept to its last entry. It becomes the only member of a cell with a new id; the others are added with empty folders ("palimpsest member add"). What only the lost members had is gone: writers and page servers that had more are told so, and stop.

Never do it while a majority may come back with its disks: there would be two cells that both take redo.

Example:
  palimpsest member recover --data /var/lib/palimpsest/sk1
  palimpsest member recover --data /var/lib/palimpsest/sk1 --yes`,
    )
    .action(run)
}

async function run(options: RecoverCommandOptions): Promise<void> {
  const { data, yes, json } = options
  if (yes && data.length > 1)
    throw new UsageError('with --yes give one --data: the folder that a cell is to be made of')
  for (const dir of data) refuseRunning(dir)
  const survivors: Survivor[] = []
  for (const dir of data) survivors.push(await lookAtSurvivor(nodeDisk, dir))
  const newest = newestOf(survivors)
  const reach = options.backup === undefined ? undefined : await reachOf(options.backup, options, newest)
  if (!yes) {
    if (json)
      return printJson({
        survivors: survivors.map(summary),
        newest: newest.dir,
        backup: reach && backupSummary(reach, newest),
      })
    for (const one of survivors) tell(one)
    if (survivors.length > 1) console.log(`the newest log is in ${newest.dir}: take that one`)
    if (reach !== undefined) console.log(compared(reach, newest))
    const isAlone = newest.others.length === 0 && !newest.unfinished
    console.log(
      isAlone
        ? 'nothing is to be recovered: start it'
        : `nothing was changed. If the other members are lost for good:\n  palimpsest member recover --data ${newest.dir} --yes`,
    )
    return
  }
  if (reach !== undefined && !newest.holds(backupEnd(reach.manifest)))
    throw invalidError(
      `${compared(reach, newest)}. Nothing was changed. To recover from ${newest.dir} all the same, leave --backup out`,
    )
  const recovered = await recover(newest.dir, json)
  if (!json) tellDone(newest, recovered)
}

function refuseRunning(dir: string): void {
  const owner = directoryOwner(dir)
  if (owner !== undefined)
    throw invalidError(`the safekeeper of ${dir} is running (process ${owner}): stop it first`)
}

async function reachOf(where: string, options: S3CommandOptions, { cellId }: Survivor): Promise<BackupReach> {
  const store = await openStoreToRead(where, options)
  return { store: store.description, manifest: await loadBackup(store, cellId) }
}

async function recover(dir: string, json: boolean): Promise<Recovered & { readonly cellId: string }> {
  const unlock = lockDirectory(dir)
  try {
    const newCellId = randomBytes(16).toString('hex')
    const recovered = await recoverCell({
      disk: nodeDisk,
      clock: nodeClock,
      dir,
      newCellId,
      log: createLog({ name: 'recover', level: 'warn' }),
    })
    const done = { ...recovered, cellId: newCellId }
    if (json) {
      const { nodeId, oldCellId, last, term, timelines } = done
      printJson({
        cellId: newCellId,
        recoveredFrom: oldCellId,
        nodeId,
        lastIndex: last.index,
        lastTerm: last.term,
        term,
        timelines,
        data: dir,
      })
    }
    return done
  } finally {
    unlock()
  }
}

function summary(survivor: Survivor): object {
  const { dir, base, last, holds: _, ...rest } = survivor
  return { data: dir, ...rest, fromIndex: base.index + 1, lastIndex: last.index, lastTerm: last.term }
}

function backupSummary({ store, manifest }: BackupReach, survivor: Survivor): object {
  const end = backupEnd(manifest)
  return { store, toIndex: end.index, toTerm: end.term, atUs: manifest.atUs, isHeld: survivor.holds(end) }
}

function tell(survivor: Survivor): void {
  const { dir, nodeId, cellId, base, last, knownCommitted, term, part, others, timelines } = survivor
  const lines = [
    `${dir}: safekeeper ${nameOf(nodeId)} (${nodeId}) of cell ${cellId}`,
    `  log: entries ${base.index + 1} to ${last.index}, the last of term ${last.term}; it has heard of term ${term ?? '? (vote.json is damaged)'}`,
    knownCommitted < last.index
      ? `  known to be committed: up to entry ${knownCommitted}; the ${last.index - knownCommitted} behind it may have been acknowledged, and are kept`
      : '  all of it is known to be committed',
    others.length === 0
      ? '  it is the only member'
      : `  other members: ${others.map(({ nodeId: id, address }) => `${nameOf(id)}${address === '' ? '' : ` (${address})`}`).join(', ')}`,
  ]
  if (survivor.origin !== undefined) {
    const { how, from, wallTimeUs } = survivor.origin
    lines.push(
      `  its cell was made of ${how === 'survivor' ? 'a survivor' : 'the backup'} of cell ${from}, ${formatTime(wallTimeUs)}`,
    )
  }
  if (part !== 'voter')
    lines.push(
      part === 'learner'
        ? '  UNCERTAIN: it was being added and had no vote yet: it may lack what was acknowledged'
        : '  UNCERTAIN: it is no member by its own log (removed, or never added): it may lack what was acknowledged',
    )
  if (survivor.recovering)
    lines.push(
      '  UNCERTAIN: part of its log was damaged, and it had not got that again from the others: acknowledged redo may be missing',
    )
  if (survivor.unfinished)
    lines.push('  "member recover" was begun on it and cut short: run it again with --yes')
  for (const timeline of timelines) {
    const { name, timeline: id, committedLsn, endLsn, epoch, writer, lastWallTimeUs } = timeline
    lines.push(
      `  timeline ${name} (${id}): up to LSN ${endLsn}${lastWallTimeUs === 0 ? '' : `, ${formatTime(lastWallTimeUs)}`}`,
    )
    const known = committedLsn < endLsn ? `known to be committed up to LSN ${committedLsn}; ` : ''
    lines.push(`    ${known}${epoch === 0 ? 'no writer yet' : `writer ${writer}, epoch ${epoch}`}`)
  }
  console.log(lines.join('\n'))
}

function compared({ store, manifest }: BackupReach, survivor: Survivor): string {
  const end = backupEnd(manifest)
  const written = manifest.atUs === 0 ? '' : `, written ${formatTime(manifest.atUs)}`
  const reaches = `the backup in ${store} goes to entry ${end.index} (term ${end.term})${written}`
  return survivor.holds(end)
    ? `${reaches}; the log of ${survivor.dir} has all of that and ${survivor.last.index - end.index} entries more`
    : `${reaches}, which the log of ${survivor.dir} does not have: use "palimpsest backup restore" instead`
}

function tellDone(
  { dir, nodeId }: Survivor,
  { cellId, last, timelines }: Recovered & { readonly cellId: string },
): void {
  const name = nameOf(nodeId)
  console.log(
    `${dir} is the only member of a new cell, ${cellId}, which has all up to entry ${last.index} (timelines: ${timelines}). Next:\n` +
      `  1. palimpsest safekeeper --id ${name} --data ${dir} --listen … as before\n` +
      '  2. empty the folders of the other members (keep copies), start them with --join HOST:PORT of this one, and add\n' +
      '     each: palimpsest member add NAME=HOST:PORT\n' +
      '  3. palimpsest status: page servers that had more redo than there is now say so; agents are started again\n' +
      'docs/operations.md, "After a lost majority", tells the rest',
  )
}
