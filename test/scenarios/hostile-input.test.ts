/** A server as its users run it, and everything that somebody may send to its port. Others must not notice. */
import { readFileSync } from 'node:fs'
import { connect as connectTcp, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import t, { type Test } from 'tap'
import { Connection } from '../../protocol/connection.ts'
import { PalimpsestError } from '../../protocol/errors.ts'
import { MessageType } from '../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { openClientSecurity } from '../../server/shared/client-security.ts'
import { fuzzConnections } from '../fuzz/connection-fuzz.ts'
import { Cluster } from '../support/cluster.ts'
import { Pki } from '../support/pki.ts'

const { casesEach, seeds } = JSON.parse(
  readFileSync(new URL('../fixtures/fuzz/connection-seeds.json', import.meta.url), 'utf8'),
) as { casesEach: number; seeds: number[] }

const MIB = 2 ** 20
const SLOW_CONNECTIONS = 2000

async function secured(t: Test, tls: boolean) {
  const pki = await Pki.make(t)
  const admin = await pki.tokenFile(['admin'])
  const { tlsCert, tlsKey, tokenKeys } = pki.serverFiles
  const cluster = await Cluster.start(t, [
    ...['--memory', '256M', '--workers', '1', '--token-keys', tokenKeys as string, '--token-file', admin],
    ...(tls ? ['--tls-cert', tlsCert as string, '--tls-key', tlsKey as string, '--tls-ca', pki.caFile] : []),
  ])
  const security = openClientSecurity(tls ? { tlsCa: pki.caFile, tokenFile: admin } : { tokenFile: admin })
  return { pki, cluster, security: security as ConnectionSecurity, address: cluster.addresses[0]! }
}

/** Connects, asks, goes; again and again. */
class HonestClient {
  served = 0
  private readonly done: Promise<void>
  private stopped = false

  constructor(address: { host: string; port: number }, security: ConnectionSecurity) {
    this.done = this.run(address, security)
    // Looked at in `stop` and `servedAgain`.
    this.done.catch(() => {})
  }

  private async run(address: { host: string; port: number }, security: ConnectionSecurity): Promise<void> {
    while (!this.stopped) {
      try {
        const connection = await Connection.connect({ ...address, security })
        await connection.request({ type: MessageType.Ping })
        await connection.requestAll({ type: MessageType.TimelineList })
        connection.close()
        this.served++
      } catch (error) {
        // A flood may take its place, as any client's; the next attempt has the same chance.
        if (!(error instanceof PalimpsestError && error.kind === 'retry')) throw error
      }
      await sleep(20)
    }
  }

  /** Waits until it was served some more times. */
  async servedAgain(times: number): Promise<void> {
    const enough = this.served + times
    while (this.served < enough) await Promise.race([this.done, sleep(20)])
  }

  async stop(): Promise<void> {
    this.stopped = true
    await this.done
  }
}

for (const tls of [false, true])
  t.test(`${tls ? 'TLS' : 'plain'}: fuzzed bytes, before and after the hello`, async t => {
    const { pki, cluster, security, address } = await secured(t, tls)
    // Peers and administrators are trusted with messages that stop a server; these are not.
    const token = await pki.token(['write:*', 'pageserver'])
    const honest = new HonestClient(address, security)
    const before = cluster.residentBytes
    for (const seed of seeds) {
      const counters = await fuzzConnections({ address, tls, token, seed, cases: casesEach })
      t.ok(counters.gotIn > casesEach / 6, `seed ${seed}: ${JSON.stringify(counters)}`)
    }
    await honest.servedAgain(3)
    await honest.stop()
    t.ok(honest.served > 5, 'others were served meanwhile')
    const grown = cluster.residentBytes - before
    t.ok(grown < 200 * MIB, `memory grew by ${Math.round(grown / MIB)} MiB`)
    t.notMatch(cluster.log, /"level":60|uncaught|unhandled/i)
  })

for (const tls of [false, true])
  t.test(`${tls ? 'TLS' : 'plain'}: ${SLOW_CONNECTIONS} half-open and slow connections`, async t => {
    const { cluster, security, address } = await secured(t, tls)
    const before = cluster.residentBytes
    const honest = new HonestClient(address, security)
    const open = new Set<Socket>()
    let made = 0
    let most = 0
    const timers: NodeJS.Timeout[] = []
    for (let i = 0; i < SLOW_CONNECTIONS; i++) {
      // Every third one gets through a TLS handshake first.
      const socket =
        tls && i % 3 === 0 ? connectTls({ ...address, rejectUnauthorized: false }) : connectTcp(address)
      open.add(socket)
      socket.on('connect', () => made++)
      socket.on('error', () => {})
      socket.on('close', () => open.delete(socket))
      socket.resume()
      if (i % 2 === 0) {
        // A byte now and then of a hello, or of a TLS record, that never ends.
        const bytes = tls ? Buffer.from([0x16, 3, 1, 2, 0, 1]) : Buffer.from([96, 0, 0, 0, 1, 2, 3, 4])
        let at = 0
        timers.push(
          setInterval(() => {
            if (!socket.destroyed) socket.write(bytes.subarray(at, ++at))
          }, 500),
        )
      }
      if (i % 50 === 49) await sleep(10)
      most = Math.max(most, cluster.residentBytes)
    }
    // However busy the machine is: until all have come, and those that were too many have gone.
    while (made < SLOW_CONNECTIONS * 0.95 || open.size > 800) await sleep(50)
    await honest.servedAgain(10)
    t.pass('the honest client was served all the time')
    most = Math.max(most, cluster.residentBytes)
    t.ok(open.size <= 800, `${open.size} of the ${made} that were made have a place`)
    await honest.stop()
    t.ok(most - before < 200 * MIB, `memory grew by ${Math.round((most - before) / MIB)} MiB at most`)
    for (const timer of timers) clearInterval(timer)
    for (const socket of open) socket.destroy()
    const after = await Connection.connect({ ...address, security })
    await after.request({ type: MessageType.Ping })
    after.close()
    const refusals = cluster.log
      .split('\n')
      .filter(line => /did not say who|handshake failed|refused/.test(line))
    t.ok(refusals.length < 200, `the log has ${refusals.length} lines about it`)
  })
