/** The show on a private MariaDB server: attach, work, verify, and one row as it was at two moments. */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { dial } from '../../protocol/dial.ts'
import { MessageType, Role, type TimelineStatus } from '../../protocol/messages.ts'
import { MariadbServer, mariadb } from '../../test/support/mariadb.ts'
import { background, command, run, ShowError, type Stage, step, stop, tell } from './stage.ts'

const TIMELINE = 'shop'
const CUSTOMERS = 200
const ORDERS = 5000

export async function play(stage: Stage, seconds: number): Promise<void> {
  const found = mariadb()
  if (!found.ok) throw new ShowError(found.reason)
  const datadir = join(stage.directory, 'mysql')

  step(`A private MariaDB ${found.version} beside it, with a little shop`)
  const server = await MariadbServer.createAt(datadir)
  try {
    await server.start()
    await openShop(server)
    tell(`${ORDERS} orders of ${CUSTOMERS} customers in ${datadir}`)

    step('Attach it: copy what is there, then follow its redo log')
    command(`attach --datadir ${datadir} --timeline ${TIMELINE}`)
    const attach = background(
      ['attach', '--datadir', datadir, '--timeline', TIMELINE, '--connect', stage.address],
      tell,
    )
    const watch = await Watch.begin(stage.address)
    await watch.untilActive(() => attach.exitCode === null)

    step(`Work for ${seconds} seconds, and watch it arrive`)
    await work(server, watch, seconds)

    step('An accident: somebody updates one order too many')
    await sleep(50)
    const before = await watch.caughtUpWith(await server.currentLsn())
    tell(`order 42 is ${await orderText(server)}   (LSN ${before})`)
    await server.sql("UPDATE shop.orders SET status = 'cancelled', total = 0 WHERE id <= 2500")
    const after = await watch.caughtUpWith(await server.currentLsn())
    tell(`order 42 is ${await orderText(server)}   (LSN ${after})`)

    step("Shut the server down, and compare every page with the server's own files")
    await server.stop()
    await waitForLogEnd(watch)
    await stop(attach)
    watch.close()
    command(`verify --timeline ${TIMELINE} --datadir ${datadir}`)
    const verify = await run([
      'verify',
      '--timeline',
      TIMELINE,
      '--datadir',
      datadir,
      '--connect',
      stage.address,
    ])
    if (verify.code !== 0) throw new ShowError('the pages differ; that must not be')

    step('The same row as it was at two moments, each from a restored copy of the whole database')
    const was = await restoredOrder(stage, before, 'before')
    const became = await restoredOrder(stage, after, 'after')
    if (was === became) throw new ShowError(`both copies show order 42 as ${was}`)
  } finally {
    await server.remove()
  }
}

async function openShop(server: MariadbServer): Promise<void> {
  await server.sql(`CREATE DATABASE shop;
    CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL) ENGINE=InnoDB;
    CREATE TABLE shop.orders (id INT PRIMARY KEY AUTO_INCREMENT, customer INT NOT NULL, total DECIMAL(10,2) NOT NULL,
      status VARCHAR(12) NOT NULL,
      changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
      KEY (customer), FOREIGN KEY (customer) REFERENCES shop.customers (id)) ENGINE=InnoDB;
    INSERT INTO shop.customers SELECT seq, CONCAT('customer ', seq) FROM shop.seq_1_to_${CUSTOMERS}`)
  await server.sql(
    `INSERT INTO shop.orders (customer, total, status) SELECT 1 + seq % ${CUSTOMERS}, seq % 997 + 0.5, 'paid' FROM shop.seq_1_to_${ORDERS}`,
  )
}

async function orderText(server: MariadbServer): Promise<string> {
  const rows = await server.sql<{ status: string; total: string }>(
    'SELECT status, total FROM shop.orders WHERE id = 42',
  )
  const row = rows[0]
  if (row === undefined) throw new ShowError('order 42 is not there')
  return `${row.status}, ${row.total}`
}

/** Four customers order and pay as fast as the server lets them, while each second one line tells what arrived. */
async function work(server: MariadbServer, watch: Watch, seconds: number): Promise<void> {
  const end = performance.now() + seconds * 1000
  let transactions = 0
  const customer = async (n: number) => {
    while (performance.now() < end)
      await server.withConnection(async connection => {
        await connection.beginTransaction()
        const id = 43 + ((transactions * 7919 + n) % (ORDERS - 43))
        await connection.query('UPDATE shop.orders SET status = ?, total = total + 1 WHERE id = ?', [
          transactions % 2 ? 'paid' : 'shipped',
          id,
        ])
        await connection.query('INSERT INTO shop.orders (customer, total, status) VALUES (?, ?, ?)', [
          1 + (transactions % CUSTOMERS),
          transactions % 500,
          'new',
        ])
        await connection.commit()
        transactions++
      })
  }
  const customers = [1, 2, 3, 4].map(customer)
  let status = await watch.status()
  for (let second = 1; performance.now() < end; second++) {
    await sleep(Math.min(1000, Math.max(0, end - performance.now())))
    const written = await server.currentLsn()
    const now = await watch.status()
    const arrived = now.summary.ingestedLsn - status.summary.ingestedLsn
    tell(
      `${String(second).padStart(3)} s   ${String(transactions).padStart(7)} transactions   ` +
        `${(arrived / 1024).toFixed(0).padStart(6)} KiB of redo in this second   ` +
        `readable up to LSN ${now.summary.ingestedLsn}, ${Math.max(0, written - now.summary.ingestedLsn)} bytes behind the server`,
    )
    status = now
  }
  await Promise.all(customers)
}

/** The server has stopped: its log grows no more. Waits until the page server has stood still for half a second. */
async function waitForLogEnd(watch: Watch): Promise<void> {
  let last = -1
  for (;;) {
    const { ingestedLsn } = (await watch.status()).summary
    if (ingestedLsn === last) return
    last = ingestedLsn
    await sleep(500)
  }
}

async function restoredOrder(stage: Stage, lsn: number, name: string): Promise<string> {
  const out = join(stage.directory, `restored-${name}`)
  rmSync(out, { recursive: true, force: true })
  command(`export --timeline ${TIMELINE} --lsn ${lsn} --out ${out}`)
  const result = await run(
    ['export', '--timeline', TIMELINE, '--lsn', String(lsn), '--out', out, '--connect', stage.address],
    () => false,
  )
  if (result.code !== 0) throw new ShowError(`the export failed: ${result.lines.at(-1)}`)
  const server = await MariadbServer.createAt(out)
  try {
    await server.start()
    const text = await orderText(server)
    tell(`a stock mariadbd on it says: order 42 is ${text}`)
    return text
  } finally {
    await server.stop()
    await server.remove()
  }
}

/** Asks the page server how far it is. */
class Watch {
  private readonly connection: Awaited<ReturnType<typeof dial>>

  private constructor(connection: Awaited<ReturnType<typeof dial>>) {
    this.connection = connection
  }

  static async begin(address: string): Promise<Watch> {
    return new Watch(await dial(address, Role.PAGESERVER))
  }

  close(): void {
    this.connection.close()
  }

  async status(): Promise<TimelineStatus> {
    const { message } = await this.connection.request({
      type: MessageType.TimelineShow,
      timeline: undefined,
      name: TIMELINE,
    })
    return message
  }

  async untilActive(alive: () => boolean): Promise<void> {
    while (alive()) {
      const status = await this.status().catch(() => undefined)
      if (status?.summary.state === 'active') return
      await sleep(100)
    }
    throw new ShowError('the attach agent ended before it had attached the server')
  }

  /** Waits until the page server has all redo up to `lsn`, and gives the LSN up to which it has it. */
  async caughtUpWith(lsn: number): Promise<number> {
    for (let tries = 0; tries < 600; tries++) {
      const { ingestedLsn } = (await this.status()).summary
      if (ingestedLsn >= lsn) return ingestedLsn
      await sleep(50)
    }
    throw new ShowError(`the page server did not reach LSN ${lsn} within 30 seconds`)
  }
}
