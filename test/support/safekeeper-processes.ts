/** Safekeepers as processes from the command line, for what only a process can suffer: a kill, a stop. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { Listener } from '../../server/shared/listener.ts'
import { silentLog } from '../../server/shared/log.ts'

const BIN = resolve(fileURLToPath(import.meta.url), '../../../bin/palimpsest.js')
const NAMES = ['a', 'b', 'c']

/** Redo that tells where it belongs. */
export function lsnBytes(beginLsn: number, bytes: number): Buffer {
  const out = Buffer.alloc(bytes)
  for (let i = 0; i < bytes; i++) out[i] = (beginLsn + i) * 31 + ((beginLsn + i) >> 8)
  return out
}

/** Three safekeepers as an operator starts them. */
export class SafekeeperProcesses {
  readonly dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-cell-kill-'))
  readonly addresses = new Map<string, Address>()
  readonly children = new Map<string, ChildProcess>()

  static async start(): Promise<SafekeeperProcesses> {
    const self = new SafekeeperProcesses()
    for (const name of NAMES) {
      const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
      await listener.listen()
      self.addresses.set(name, listener.localAddress)
      await listener.close()
    }
    await Promise.all(NAMES.map(name => self.run(name)))
    return self
  }

  get list(): Address[] {
    return [...this.addresses.values()]
  }

  async run(name: string): Promise<void> {
    const peers = [...this.addresses].map(([peer, address]) => `${peer}=${formatAddress(address)}`).join(',')
    const child = spawn(
      process.execPath,
      [
        BIN,
        'safekeeper',
        '--id',
        name,
        '--data',
        join(this.dir, name),
        '--listen',
        formatAddress(this.addresses.get(name)!),
        '--peers',
        peers,
        '--log-level',
        'warn',
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    this.children.set(name, child)
    for await (const line of createInterface({ input: child.stdout! })) if (line.startsWith('ready')) return
    throw new Error(`${name} ended before it was ready`)
  }

  async signal(name: string, signal: NodeJS.Signals): Promise<void> {
    const child = this.children.get(name)!
    const ended = once(child, 'exit')
    child.kill(signal)
    if (signal === 'SIGKILL') await ended
  }

  async leader(): Promise<string> {
    const { message } = await askLeader(this.list, { type: MessageType.WalList }).then(() =>
      askLeader(this.list, { type: MessageType.CellStatus }),
    )
    return message.leader.split('.')[0]!
  }

  async end(): Promise<void> {
    for (const child of this.children.values())
      if (child.exitCode === null && child.signalCode === null) {
        const ended = once(child, 'exit')
        child.kill('SIGKILL')
        await ended
      }
    rmSync(this.dir, { recursive: true, force: true })
  }
}

export async function retried<T>(run: () => Promise<T>): Promise<T> {
  for (let i = 0; ; i++)
    try {
      return await run()
    } catch (error) {
      if (i === 100) throw error
      await new Promise(resolve => setTimeout(resolve, 100))
    }
}
