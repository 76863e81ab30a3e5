/** A real MariaDB with the bank workload, attached by `palimpsest attach`, and what has to hold in the end. */
import { join } from 'node:path'
import { formatAddress } from '../../protocol/dial.ts'
import type { TimelineId } from '../../protocol/ids.ts'
import { MariadbServer } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'
import type { ChaosCell } from './cell.ts'
import type { Keys } from './keys.ts'
import type { Network } from './network.ts'
import { palimpsest, palimpsestOk, ServerProcess } from './process.ts'

export const BANK = 'ba'.repeat(16) as TimelineId
const VERIFY_MS = 300_000

export interface BankSideOptions {
  readonly dir: string
  readonly network: Network
  readonly keys: Keys
  readonly cell: ChaosCell
  readonly seed: number
  readonly onDied: (why: string) => void
}

export class BankSide {
  readonly pageServer: ServerProcess
  private readonly options: BankSideOptions
  private readonly server: MariadbServer
  private readonly bank: BankWorkload
  private readonly agent: ServerProcess
  private readonly connectArgs: readonly string[]

  private constructor(options: BankSideOptions, server: MariadbServer, pageServer: ServerProcess) {
    const { dir, cell, keys, network, seed, onDied } = options
    this.options = options
    this.server = server
    this.pageServer = pageServer
    this.bank = new BankWorkload(server, { workers: 2, seed, noteBytes: 200 })
    const all = [...cell.addresses, network.local].map(formatAddress).join(',')
    this.connectArgs = ['--connect', all]
    this.agent = new ServerProcess({
      name: 'attach',
      dir,
      onDied,
      args: [
        ...['attach', '--datadir', server.datadir, '--timeline', 'bank', '--id', BANK, '--json'],
        ...this.connectArgs,
        ...keys.clientArgs('agent'),
      ],
    })
  }

  static async start(options: BankSideOptions): Promise<BankSide> {
    const { dir, network, cell, keys, onDied } = options
    const pageServer = new ServerProcess({
      name: 'pageserver',
      dir,
      onDied,
      args: [
        ...['pageserver', '--data', join(dir, 'pageserver'), '--listen', formatAddress(network.local)],
        ...[
          '--safekeepers',
          cell.addresses.map(formatAddress).join(','),
          '--memory',
          '384M',
          '--workers',
          '1',
        ],
        ...(await keys.server('pageserver', 'pageserver')),
      ],
    })
    await pageServer.start()
    const server = await MariadbServer.createAt(join(dir, 'db'), { bufferPoolBytes: 32 << 20 })
    const side = new BankSide(options, server, pageServer)
    try {
      await server.start()
      await side.bank.setup()
      side.bank.start()
      await side.agent.start(/"following"/)
    } catch (error) {
      await side.remove()
      throw error
    }
    return side
  }

  get transfers(): number {
    return this.bank.journal.length
  }

  /**
   * Ends the workload, shuts the server down, compares every page, and starts a server on an export.
   * @returns what is wrong
   */
  async finish(): Promise<string[]> {
    const { dir, keys } = this.options
    const wrong: string[] = []
    await this.bank.stop()
    if (this.transfers === 0) wrong.push('the bank did not commit one transfer')
    await this.server.stop()
    const security = keys.clientArgs('admin')
    const verify = ['verify', '--timeline', 'bank', '--datadir', this.server.datadir]
    const { code, stdout, stderr } = await palimpsest(
      [...verify, ...this.connectArgs, ...security],
      VERIFY_MS,
    )
    const last = stdout.trimEnd().split('\n').at(-1) ?? ''
    if (code !== 0 || !/^compared [1-9]\d* pages, 0 differ$/.test(last))
      wrong.push(`verify ended with ${code}: ${last} ${stderr.slice(0, 3000)}`)
    const out = join(dir, 'exported')
    await palimpsestOk(
      ['export', '--timeline', 'bank', '--out', out, ...this.connectArgs, ...security],
      VERIFY_MS,
    )
    const copy = await MariadbServer.createAt(out, { bufferPoolBytes: 32 << 20 })
    try {
      await copy.start()
      wrong.push(...(await this.bank.verify(copy, Number.POSITIVE_INFINITY)))
      wrong.push(...(await copy.checkAll()))
    } finally {
      await copy.remove()
    }
    await this.agent.stop()
    const done = this.agent.lines.find(line => line.includes('"done"'))
    const overtaken = done === undefined ? 'nothing' : (JSON.parse(done) as { overtaken: number }).overtaken
    if (overtaken !== 0) wrong.push(`the redo ring has overtaken the agent: ${overtaken}`)
    return wrong
  }

  async remove(): Promise<void> {
    await this.bank.stop().catch(() => {})
    await this.agent.kill9()
    await this.pageServer.kill9()
    await this.server.remove()
  }
}
