/** `palimpsest ping`: is each server there, what is it, and how far away. */

import type { Command } from 'commander'
import { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { MessageType, roleNames } from '../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { addClientOptions, type ClientOptions, integerArgument, printJson } from './common.ts'

interface PingResult {
  address: string
  ok: boolean
  roles?: string
  software?: string
  /** Median of the round trips, milliseconds. */
  roundTripMs?: number
  error?: string
}

export function registerPing(program: Command): void {
  addClientOptions(
    program
      .command('ping')
      .description('ask every server of --connect whether it is there; exits 1 if one is not')
      .option('--count <N>', 'round trips to measure', integerArgument(1, 10_000), 5),
  ).action(async (options: ClientOptions & { count: number }) => {
    const security = openClientSecurity(options)
    const results = await Promise.all(options.connect.map(address => ping(address, options.count, security)))
    if (options.json) printJson(results)
    else
      for (const r of results)
        if (r.ok) console.log(`${r.address}  ${r.roles}  ${r.software}  ${r.roundTripMs?.toFixed(2)} ms`)
        else console.error(`palimpsest: ${r.error?.includes(r.address) ? '' : `${r.address}: `}${r.error}`)
    if (results.some(r => !r.ok)) process.exitCode = 1
  })
}

async function ping(
  address: Address,
  count: number,
  security: ConnectionSecurity | undefined,
): Promise<PingResult> {
  const text = formatAddress(address)
  let connection: Connection | undefined
  try {
    connection = await Connection.connect({ ...address, security, deadlineMs: 5000 })
    const times: number[] = []
    for (let i = 0; i < count; i++) {
      const start = performance.now()
      await connection.request({ type: MessageType.Ping })
      times.push(performance.now() - start)
    }
    times.sort((a, b) => a - b)
    return {
      address: text,
      ok: true,
      roles: roleNames(connection.roles),
      software: connection.hello.software,
      roundTripMs: Math.round((times[times.length >> 1] as number) * 1000) / 1000,
    }
  } catch (error) {
    return { address: text, ok: false, error: (error as Error).message }
  } finally {
    connection?.close()
  }
}
