/** From `HOST:PORT[,HOST:PORT…]` to a connection with a server that has the role wanted. All dialling goes through here. */
import { Connection, type ConnectOptions } from './connection.ts'
import { PalimpsestError, toPalimpsestError } from './errors.ts'
import { type Role, roleNames } from './messages.ts'

export interface Address {
  /** Name or number, IPv6 without brackets. */
  readonly host: string
  readonly port: number
}

const ADDRESS = /^(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:[\]\s]+)):([0-9]{1,5})$/

/** `HOST:PORT`, IPv6 as `[::1]:PORT`. Throws an error of kind invalid. */
export function parseAddress(text: string): Address {
  const match = ADDRESS.exec(text.trim())
  const port = match === null ? -1 : Number(match[3])
  if (match === null || port > 65535)
    throw new PalimpsestError('invalid', `address "${text}" is not HOST:PORT (IPv6 as [::1]:PORT)`)
  return { host: (match[1] ?? match[2])!, port }
}

export function parseAddresses(text: string): Address[] {
  const addresses = text
    .split(',')
    .filter(part => part.trim() !== '')
    .map(parseAddress)
  if (addresses.length === 0)
    throw new PalimpsestError('invalid', `no address in "${text}": give HOST:PORT[,HOST:PORT…]`)
  return addresses
}

export function formatAddress(address: Address): string {
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`
}

const CANNOT_CONNECT = /^cannot connect to (\S+): (.*)$/s

/** What was wrong with each of several servers; of those with which the same was wrong, once. */
export function tellFailures(failures: readonly Error[]): string {
  const addresses = new Map<string, Set<string>>()
  const texts = new Set<string>()
  for (const { message } of failures) {
    const [, address, why] = CANNOT_CONNECT.exec(message) ?? []
    if (address === undefined || why === undefined) {
      texts.add(message)
      continue
    }
    const known = addresses.get(why)
    if (known === undefined) addresses.set(why, new Set([address]))
    else known.add(address)
  }
  return [
    ...[...addresses].map(([why, all]) => `cannot connect to ${[...all].join(', ')}: ${why}`),
    ...texts,
  ].join('; ')
}

export type DialOptions = Omit<ConnectOptions, 'host' | 'port'>

/**
 * Connects to the first of the addresses that answers and has the role. The error tells what was wrong with each; its
 * kind is retry if any of them may yet come, else that of the first.
 */
export async function dial(
  addresses: string | readonly Address[],
  role: Role,
  options: DialOptions = {},
): Promise<Connection> {
  const list = typeof addresses === 'string' ? parseAddresses(addresses) : addresses
  const failures: PalimpsestError[] = []
  for (const address of list) {
    try {
      const connection = await Connection.connect({ ...options, ...address })
      if ((connection.roles & role) !== 0) return connection
      const has = roleNames(connection.roles)
      connection.close()
      failures.push(
        connection.roles === 0
          ? new PalimpsestError('retry', `${formatAddress(address)} is starting up`)
          : new PalimpsestError('invalid', `${formatAddress(address)} is a ${has}, not a ${roleNames(role)}`),
      )
    } catch (error) {
      options.signal?.throwIfAborted()
      failures.push(toPalimpsestError(error))
    }
  }
  if (failures.length === 1) throw failures[0]!
  const kind = failures.find(failure => failure.kind === 'retry')?.kind ?? failures[0]!.kind
  throw new PalimpsestError(kind, `no ${roleNames(role)} could be reached: ${tellFailures(failures)}`)
}
