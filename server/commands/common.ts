/** What the commands share: options that name a server, parsing of what a person typed, output for people and for programs. */

import type { Command } from 'commander'
import { InvalidArgumentError } from 'commander'
import { type Lsn, parseLsn } from '../../protocol/ids.ts'

export interface Address {
  readonly host: string
  readonly port: number
}

export const DEFAULT_ADDRESS = '127.0.0.1:7070'

/** `HOST:PORT`, with IPv6 hosts in brackets: `[::1]:7070`. */
export function parseAddress(text: string): Address {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})$/.exec(text.trim())
  const port = match ? Number(match[3]) : Number.NaN
  if (!match || port > 65535) throw new InvalidArgumentError(`"${text}" is not HOST:PORT.`)
  return { host: (match[1] ?? match[2]) as string, port }
}

/** `HOST:PORT[,HOST:PORT…]` */
export function parseAddresses(text: string): Address[] {
  return text.split(',').map(parseAddress)
}

export function formatAddress(address: Address): string {
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`
}

export interface ClientOptions {
  connect: Address[]
  json: boolean
}

/** Adds the options of every command that reaches a server. */
export function addClientOptions(command: Command): Command {
  return command
    .option(
      '--connect <HOST:PORT[,…]>',
      'servers to talk to: safekeeper and page server',
      parseAddresses,
      parseAddresses(process.env['PALIMPSEST_CONNECT'] ?? DEFAULT_ADDRESS),
    )
    .option('--json', 'machine-readable output', false)
}

/** Option parser for LSNs. */
export function lsnArgument(text: string): Lsn {
  try {
    return parseLsn(text)
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

/** Option parser for moments: ISO 8601; without a zone it is local time, as in SQL. Gives microseconds since 1970. */
export function timeArgument(text: string): number {
  const ms = /^\d{4}-\d\d-\d\d/.test(text)
    ? Date.parse(text.replace(/^(\d{4}-\d\d-\d\d) /, '$1T'))
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

export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`
  let value = bytes
  for (const unit of ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']) {
    value /= 1024
    if (value < 1024 || unit === 'PiB')
      return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`
  }
  throw new Error('unreachable')
}

export function formatTime(timeUs: number): string {
  return new Date(timeUs / 1000).toISOString()
}

/** A failure that the person can mend by changing the call: exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}
