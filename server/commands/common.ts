/** What the commands share: options that name a server, parsing of what a person typed, output for people and for programs. */

import type { Command } from 'commander'
import { InvalidArgumentError } from 'commander'
import type { Connection } from '../../protocol/connection.ts'
import { type Address, dial, parseAddress, parseAddresses } from '../../protocol/dial.ts'
import { checkTimelineName, type Lsn, parseLsn, type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import { checkNodeName, checkZone, MessageType, Role, type TimelineStatus } from '../../protocol/messages.ts'
import { type ClientSecurityFiles, openClientSecurity } from '../shared/client-security.ts'
import { PalimpsestError } from '../shared/errors.ts'
import { leaderStatus } from './leader-status.ts'

export const DEFAULT_ADDRESS = '127.0.0.1:7070'

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
  const option = (flags: string, text: string, variable: string) =>
    command.addOption(command.createOption(flags, text).env(variable))
  option('--token-file <FILE>', 'token or API key to show to servers', 'PALIMPSEST_TOKEN_FILE')
  option(
    '--tls-ca <FILE>',
    'use TLS; servers must have a certificate of this CA ("system": of a well-known one)',
    'PALIMPSEST_TLS_CA',
  )
  return command.option(
    '--insecure-token',
    'send the token even unencrypted to other machines: who is on the way can read and use it',
    false,
  )
}

/** The certificate of this process, shown by servers to clients and by clients to servers that want to see one. */
export function addCertificateOptions(command: Command): Command {
  const option = (flags: string, text: string, variable: string) =>
    command.addOption(command.createOption(flags, text).env(variable))
  option('--tls-cert <FILE>', 'own certificate, PEM', 'PALIMPSEST_TLS_CERT')
  return option('--tls-key <FILE>', 'private key of --tls-cert, PEM', 'PALIMPSEST_TLS_KEY')
}

/** Adds the options of every command that reaches a server. */
export function addClientOptions(command: Command): Command {
  addCertificateOptions(addClientSecurityOptions(command))
  return command
    .addOption(
      command
        .createOption('--connect <HOST:PORT[,…]>', 'servers to talk to: safekeeper and page server')
        .argParser(addressesArgument)
        .default(parseAddresses(DEFAULT_ADDRESS), DEFAULT_ADDRESS),
    )
    .option('--json', 'machine-readable output', false)
}

/** Option parser for moments: ISO 8601; without a zone it is local time, as in SQL. Gives microseconds since 1970. */
export function timeArgument(text: string): number {
  const ms = /^\d{4}-\d\d-\d\d/.test(text)
    ? // A date alone would be midnight in UTC.
      Date.parse(text.replace(/^(\d{4}-\d\d-\d\d)(?: |$)/, '$1T').replace(/T$/, 'T00:00'))
    : Number.NaN
  if (Number.isNaN(ms))
    throw new InvalidArgumentError(
      `"${text}" is not a time; write it as 2026-11-21T14:30:00Z or "2026-11-21 14:30:00".`,
    )
  return ms * 1000
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

/** A server's refusal with the address of who refused, if it is not in the text. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const { message } = error
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
): Promise<T> {
  const leader = role === Role.SAFEKEEPER ? await leaderAddress(options) : []
  const connection = await dial([...leader, ...options.connect], role, {
    security: openClientSecurity(options),
  })
  try {
    return await use(connection)
  } finally {
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

/** Asks the page server for a timeline by what a person calls it: its name or its id. */
export async function findTimeline(connection: Connection, nameOrId: string): Promise<TimelineStatus> {
  const byId = /^[0-9a-f]{32}$/.test(nameOrId)
  const { message } = await connection.request({
    type: MessageType.TimelineShow,
    timeline: byId ? toTimelineId(nameOrId) : undefined,
    name: byId ? '' : checkTimelineName(nameOrId),
  })
  return message
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}
