/** What `palimpsest page get|history|inspect` share: naming one page of a timeline, and fetching it. */
import { type Command, InvalidArgumentError } from 'commander'
import { parseSpaceFlags, type SpaceFormat } from '../../parser/space-flags.ts'
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn } from '../../protocol/ids.ts'
import type { SpaceItem, TimelineStatus } from '../../protocol/messages.ts'
import { listSpaces, resolveMoment } from '../datadir/at-lsn.ts'
import { fetchBatch } from '../datadir/page-fetcher.ts'
import { invalidError } from '../shared/errors.ts'
import {
  addClientOptions,
  type ClientOptions,
  findTimeline,
  integerArgument,
  lsnArgument,
  momentOf,
  TIME_HELP,
  TIMELINE_READ_HELP,
  timeArgument,
} from './common.ts'
import { didYouMean } from './similar.ts'

export interface PageOptions extends ClientOptions {
  timeline: string
  space: number | string
  page: number
  lsn?: Lsn
  time?: number
}

/** A tablespace's id, or its name: `db/table`, with or without `.ibd`, or `ibdata1`, `undo001`. */
export function spaceArgument(text: string): number | string {
  if (/^\d{1,10}$/.test(text)) {
    const id = Number(text)
    if (id > 0xffffffff) throw new InvalidArgumentError(`"${text}" is no tablespace id.`)
    return id
  }
  if (text === '') throw new InvalidArgumentError('give a tablespace id or a name such as db/table.')
  return text
}

export function addPageOptions(command: Command): Command {
  return addClientOptions(
    command
      .requiredOption('--timeline <NAME>', TIMELINE_READ_HELP)
      .requiredOption('--space <ID|NAME>', 'tablespace: its id, or db/table, ibdata1, undo001', spaceArgument)
      .requiredOption('--page <N>', 'page number', integerArgument(0, 0xffffffff)),
  )
}

export function addMomentOptions(command: Command): Command {
  return command
    .option('--lsn <N>', 'as of this LSN (default: the newest)', lsnArgument)
    .option('--time <ISO>', `as of this time, ${TIME_HELP}`, timeArgument)
}

export interface NamedSpace {
  readonly status: TimelineStatus
  readonly lsn: Lsn
  readonly space: SpaceItem
  readonly format: SpaceFormat
}

/** Finds the timeline, the LSN, and the tablespace as it was then. */
export async function findSpace(pageServer: Connection, options: PageOptions): Promise<NamedSpace> {
  const moment = momentOf(options)
  const status = await findTimeline(pageServer, options.timeline)
  const { lsn } = await resolveMoment(pageServer, status, moment, console.error)
  const spaces = await listSpaces(pageServer, status, lsn)
  const wanted = options.space
  const space =
    typeof wanted === 'number'
      ? spaces.find(s => s.space === wanted)
      : spaces.find(s => s.name === wanted || s.name === `${wanted}.ibd`)
  if (!space)
    throw invalidError(
      `timeline ${status.summary.name} had no tablespace ${typeof wanted === 'number' ? wanted : `"${wanted}"`} at LSN ${lsn}${nearest(wanted, spaces)}`,
      lsn,
    )
  return { status, lsn, space, format: parseSpaceFlags(space.flags) }
}

function nearest(wanted: number | string, spaces: readonly SpaceItem[]): string {
  if (typeof wanted === 'number') return ''
  return didYouMean(
    wanted.replace(/\.ibd$/, ''),
    spaces.map(({ name }) => name.replace(/\.ibd$/, '')),
  )
}

export interface FoundPage extends NamedSpace {
  readonly bytes: Uint8Array
  readonly pageLsn: Lsn
  readonly freed: boolean
}

/** One page as it was. @throws PalimpsestError of kind invalid beyond the tablespace's end */
export async function getPage(pageServer: Connection, options: PageOptions): Promise<FoundPage> {
  const found = await findSpace(pageServer, options)
  const { status, lsn, space } = found
  const source = { pageServer, timeline: status.summary.timeline, lsn }
  const [page] = await fetchBatch(source, space.space, [options.page])
  if (!page?.bytes)
    throw invalidError(
      `tablespace ${space.space} (${space.name}) had ${space.pages} pages at LSN ${lsn}; there was no page ${options.page}`,
      lsn,
    )
  return { ...found, bytes: page.bytes, pageLsn: page.lsn, freed: page.freed }
}
