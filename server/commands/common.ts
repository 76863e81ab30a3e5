/** What the commands share: options that name a server, parsing of what a person typed, output for people and for programs. */

import type { Command } from 'commander'
import { InvalidArgumentError } from 'commander'
import type { Connection } from '../../protocol/connection.ts'
import { type Address, dial, parseAddress, parseAddresses } from '../../protocol/dial.ts'
import { checkTimelineName, type Lsn, parseLsn, type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import { checkNodeName, checkZone, MessageType, Role, type TimelineStatus } from '../../protocol/messages.ts'
import type { Moment } from '../datadir/at-lsn.ts'
import { type ClientSecurityFiles, openClientSecurity } from '../shared/client-security.ts'
import { PalimpsestError } from '../shared/errors.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import { HelpGroup } from './command-line.ts'
import { leaderStatus } from './leader-status.ts'
import { didYouMean } from './similar.ts'

export const DEFAULT_ADDRESS = '127.0.0.1:7070'

/** For help texts: --json. */
export const JSON_HELP = 'machine-readable output'
/** --timeline of commands that read. */
export const TIMELINE_READ_HELP = 'timeline to read, by name or id'
/** And of those that write. */
export const TIMELINE_WRITE_HELP = 'timeline to write to, by name or id; a new name makes one'

/** Option parsers; they turn a bad value into wrong usage. */
export const addressArgument = orWrongUsage(parseAddress)
export const addressesArgument = orWrongUsage(parseAddresses)
/** Option parser for LSNs. */
export const lsnArgument: (text: string) => Lsn = orWrongUsage(text => parseLsn(text))
export const timelineNameArgument = orWrongUsage(checkTimelineName)
export const nodeNameArgument = orWrongUsage(checkNodeName)
export const zoneArgument = orWrongUsage(checkZone)
export const timelineIdArgument: (text: string) => TimelineId = orWrongUsage(toTimelineId)

function orWrongUsage<T>(parse: (text: string) => T): (text: string) => T {
  return text => {
    try {
      return parse(text)
    } catch (error) {
      throw new InvalidArgumentError((error as Error).message)
    }
  }
}

export interface ClientOptions extends ClientSecurityFiles {
  connect: Address[]
  json: boolean
}

/** Options for the way to a server: `openClientSecurity` reads what they name. */
export function addClientSecurityOptions(command: Command): Command {
  const option = optionOf(command)
  option('--token-file <FILE>', 'token or API key to show to servers', 'PALIMPSEST_TOKEN_FILE')
  option(
    '--tls-ca <FILE>',
    'use TLS; servers must have a certificate of this CA ("system": of a well-known one)',
    'PALIMPSEST_TLS_CA',
  )
  return command.addOption(
    command
      .createOption(
        '--insecure-token',
        'send the token even unencrypted to other machines: who is on the way can read and use it',
      )
      .default(false)
      .helpGroup(HelpGroup.SECURITY),
  )
}

/** Adds options that may stand in the environment as well. */
export function optionOf(command: Command): (flags: string, text: string, variable: string) => Command {
  return (flags, text, variable) =>
    command.addOption(
      command.createOption(flags, text).argParser(pathArgument).env(variable).helpGroup(HelpGroup.SECURITY),
    )
}

/** The certificate of this process, shown by servers to clients and by clients to servers that want to see one. */
export function addCertificateOptions(command: Command): Command {
  const option = optionOf(command)
  option('--tls-cert <FILE>', 'own certificate, PEM', 'PALIMPSEST_TLS_CERT')
  return option('--tls-key <FILE>', 'private key of --tls-cert, PEM', 'PALIMPSEST_TLS_KEY')
}

/** Adds the options of every command that reaches a server. */
export function addClientOptions(command: Command): Command {
  command
    .addOption(
      command
        .createOption('--connect <HOST:PORT[,…]>', 'servers to talk to: safekeepers and page server')
        .argParser(addressesArgument)
        .default(parseAddresses(DEFAULT_ADDRESS), DEFAULT_ADDRESS),
    )
    .option('--json', JSON_HELP, false)
  return addCertificateOptions(addClientSecurityOptions(command))
}

/** For help texts: how moments are written. */
export const TIME_HELP = 'e.g. 2026-11-21T14:30:00Z, or "2026-11-21 14:30:00" in local time'

const TIME = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?) ?(Z|[+-]\d\d(?::?\d\d)?)?)?$/i

/** Option parser for moments: ISO 8601; without a zone it is local time, as in SQL. Gives microseconds since 1970. */
export function timeArgument(text: string): number {
  const match = TIME.exec(text.trim())
  const [, year, month, day, time = '00:00', zone = ''] = match ?? []
  // `Date` takes a 30th of February for the 2nd of March.
  const exists =
    match !== null &&
    new Date(Date.UTC(Number(year), Number(month) - 1, Number(day))).getUTCDate() === Number(day)
  const minutes = /^[+-]\d\d$/.test(zone) ? `${zone}:00` : zone.replace(/^([+-]\d\d)(\d\d)$/, '$1:$2')
  const ms = exists ? Date.parse(`${year}-${month}-${day}T${time}${minutes.toUpperCase()}`) : Number.NaN
  if (Number.isNaN(ms))
    throw new InvalidArgumentError(
      `"${text}" is not a time; write it as 2026-11-21T14:30:00Z, or "2026-11-21 14:30:00" for local time (which is ${localZone()} here).`,
    )
  return ms * 1000
}

function localZone(): string {
  return new Intl.DateTimeFormat().resolvedOptions().timeZone
}

/** What --lsn and --time say together. @throws UsageError if both are given */
export function momentOf({ lsn, time }: { readonly lsn?: Lsn; readonly time?: number }): Moment {
  if (lsn !== undefined && time !== undefined) throw new UsageError('give --lsn or --time, not both')
  return { lsn, timeUs: time }
}

/** Option parser for files and directories: an empty one would be the current directory. */
export function pathArgument(text: string): string {
  if (text === '') throw new InvalidArgumentError('it is empty.')
  return text
}

/** Option parser for whole numbers in a range. */
export function integerArgument(min: number, max: number): (text: string) => number {
  return text => {
    const value = Number(text)
    if (!/^[0-9]+$/.test(text) || value < min || value > max)
      throw new InvalidArgumentError(`"${text}" is not a whole number from ${min} to ${max}.`)
    return value
  }
}

const UNITS: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }

/** Option parser for sizes: `512M`, `1G`, `1GiB`; powers of 1024. Gives bytes. */
export function sizeArgument(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(text.trim())
  if (!match) throw new InvalidArgumentError(`"${text}" is not a size; write it as 512M or 1G.`)
  return Math.round(Number(match[1]) * (UNITS[(match[2] as string).toUpperCase()] as number))
}

/** A failure that the person can mend by changing the call: exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}

/** What the operating system says of files, in words. */
const PLAINLY: Readonly<Record<string, string>> = {
  EACCES: 'permission denied; choose another place, or run this as a user that may',
  EPERM: 'not permitted; choose another place, or run this as a user that may',
  ENOENT: 'no such file or directory',
  ENOTDIR: 'what stands above it is a file, and not a directory',
  EEXIST: 'exists already',
  EISDIR: 'is a directory, and not a file',
  EROFS: 'is on a file system that is read-only',
  ENOSPC: 'no space left on that disk; make room, or choose another one',
  EDQUOT: 'the quota of that disk is used up; make room, or choose another one',
  EMFILE: 'too many open files; raise the limit (ulimit -n)',
}

/** Of an error that came from a file operation as it is: its path, and what is wrong; undefined for any other. */
function plainSystemError(error: NodeJS.ErrnoException): string | undefined {
  const { code = '', path, syscall } = error
  const why = PLAINLY[code]
  return path === undefined || syscall === undefined || why === undefined
    ? undefined
    : `${path}: ${why} (${code})`
}

/** A server's refusal with the address of who refused, if it is not in the text; the operating system's in words. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const message = plainSystemError(error) ?? error.message
  const address = error instanceof PalimpsestError ? error.address : undefined
  return address === undefined || message.includes(address) ? message : `${address}: ${message}`
}

/**
 * Dials the first of `addresses` that has the role, runs `use`, and closes the connection whatever happens. Of safekeepers it is
 * the one that leads, if that is known: one that is cut off, or in the cell no more, cannot pass anything on.
 */
export async function withConnection<T>(
  options: ClientOptions,
  role: Role,
  use: (connection: Connection) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const leader = role === Role.SAFEKEEPER ? await leaderAddress(options) : []
  const connection = await dial([...leader, ...options.connect], role, {
    security: openClientSecurity(options),
    signal,
  })
  // Whoever waits for an answer then waits no longer.
  const hangUp = () => connection.close()
  signal?.addEventListener('abort', hangUp, { once: true })
  try {
    return await use(connection)
  } finally {
    signal?.removeEventListener('abort', hangUp)
    connection.close()
  }
}

async function leaderAddress(options: ClientOptions): Promise<Address[]> {
  try {
    const { leaderAddress } = await leaderStatus(options)
    return leaderAddress === '' ? [] : [parseAddress(leaderAddress)]
  } catch {
    return []
  }
}

/** @throws UsageError for what is neither a timeline's name nor an id */
export function checkTimeline(nameOrId: string): void {
  if (isTimelineId(nameOrId)) return
  try {
    checkTimelineName(nameOrId)
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

function isTimelineId(text: string): boolean {
  return /^[0-9a-f]{32}$/.test(text)
}

/**
 * Asks the page server for a timeline by what a person calls it: its name or its id.
 * @throws PalimpsestError that tells names like it if there is none; UsageError
 */
export async function findTimeline(connection: Connection, nameOrId: string): Promise<TimelineStatus> {
  checkTimeline(nameOrId)
  const byId = isTimelineId(nameOrId)
  try {
    const { message } = await connection.request({
      type: MessageType.TimelineShow,
      timeline: byId ? toTimelineId(nameOrId) : undefined,
      name: byId ? '' : nameOrId,
    })
    return message
  } catch (error) {
    if (!(error instanceof PalimpsestError) || error.kind !== 'invalid' || byId) throw error
    // A token for one timeline may not list the others.
    const all = await listTimelines(connection).catch(() => [])
    if (all.length === 0 || all.some(({ name }) => name === nameOrId)) throw error
    const near = didYouMean(
      nameOrId,
      all.map(({ name }) => name),
    )
    const advice = near || '; "palimpsest timeline list" shows those that there are'
    throw new PalimpsestError(error.kind, `${describeError(error)}${advice}`, { cause: error })
  }
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}

/** A message as `--json` shows it: without its number on the wire. */
export function withoutType<M extends { readonly type: number }>({ type: _, ...fields }: M): Omit<M, 'type'> {
  return fields
}
