// Money that moves between accounts while a client keeps a journal, so that a copy of the database at any
// LSN can be checked for holding exactly the transactions committed by then.
import type { PoolConnection } from 'mariadb'
import type { MariadbServer } from '../mariadb.ts'
import { SeededRandom } from './random.ts'

/**
 * One transfer as its client saw it. The mini-transaction that committed it ends at an LSN in
 * (lsnBefore, lsnAfter]: the client read the server's LSN just before it sent COMMIT and just after the
 * answer.
 */
export type Transfer = {
  id: number
  from: number
  to: number
  amount: number
  lsnBefore: number
  /** Infinity if no answer came: the transfer may be in or not, from lsnBefore on. */
  lsnAfter: number
}

export type BankOptions = {
  accounts?: number
  workers?: number
  seed?: number
  database?: string
  /** One in so many transactions rolls back instead. 0 for none. Default 10. */
  rollbackEvery?: number
  /** Bytes of text that each transfer carries, for more redo. Default 60. */
  noteBytes?: number
}

const openingBalance = 1000

export class BankWorkload {
  readonly database: string
  /** Transfers in the order in which their answers arrived. */
  readonly journal: Transfer[] = []
  private readonly server: MariadbServer
  private readonly accounts: number
  private readonly workers: number
  private readonly seed: number
  private readonly rollbackEvery: number
  private readonly noteBytes: number
  private nextId = 1
  private stopping = false
  private running: Promise<void>[] = []

  constructor(server: MariadbServer, options: BankOptions = {}) {
    this.server = server
    this.database = options.database ?? 'bank'
    this.accounts = options.accounts ?? 200
    this.workers = options.workers ?? 4
    this.seed = options.seed ?? 1
    this.rollbackEvery = options.rollbackEvery ?? 10
    this.noteBytes = options.noteBytes ?? 60
  }

  /** Creates the tables and the accounts. */
  async setup(): Promise<void> {
    const db = this.database
    await this.server.sql(`CREATE DATABASE ${db}`)
    await this.server.sql(
      `CREATE TABLE ${db}.account (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB`,
    )
    await this.server.sql(
      `CREATE TABLE ${db}.transfer (id BIGINT PRIMARY KEY, source INT NOT NULL, target INT NOT NULL,
        amount INT NOT NULL, note TEXT NOT NULL, KEY (source), KEY (target, amount)) ENGINE=InnoDB`,
    )
    await this.server.sql(
      `INSERT INTO ${db}.account SELECT seq, ${openingBalance} FROM ${db}.seq_1_to_${this.accounts}`,
    )
  }

  /** Lets the workers go; they run until `stop`, or until the server goes away. */
  start(): void {
    this.stopping = false
    this.running = Array.from({ length: this.workers }, (_, worker) => this.work(worker))
  }

  /** Lets transfers in flight finish. @throws what a worker failed with, unless the server went away */
  async stop(): Promise<void> {
    this.stopping = true
    await Promise.all(this.running)
    this.running = []
  }

  /** Runs for a number of transfers. */
  async run(transfers: number): Promise<void> {
    const wanted = this.journal.length + transfers
    this.start()
    const poll = async (): Promise<void> => {
      while (this.journal.length < wanted && !this.stopping) await new Promise(next => setTimeout(next, 5))
      this.stopping = true
    }
    await Promise.all([poll(), ...this.running])
    this.running = []
  }

  private async work(worker: number): Promise<void> {
    const random = new SeededRandom(this.seed * 1000 + worker)
    try {
      await this.server.withConnection(async connection => {
        await connection.query(`USE ${this.database}`)
        while (!this.stopping) await this.transfer(connection, random)
      })
    } catch (error) {
      // A server that was killed takes its clients with it; what they knew stands in the journal.
      if (this.server.isRunning && !isGone(error)) throw error
    } finally {
      this.stopping = this.stopping || !this.server.isRunning
    }
  }

  private async transfer(connection: PoolConnection, random: SeededRandom): Promise<void> {
    const id = this.nextId++
    const from = 1 + random.below(this.accounts)
    const to = 1 + ((from + random.below(this.accounts - 1)) % this.accounts)
    const amount = 1 + random.below(20)
    const rollsBack = this.rollbackEvery > 0 && random.below(this.rollbackEvery) === 0
    try {
      await connection.beginTransaction()
      await connection.query('UPDATE account SET balance = balance - ? WHERE id = ?', [amount, from])
      await connection.query('UPDATE account SET balance = balance + ? WHERE id = ?', [amount, to])
      await connection.query('INSERT INTO transfer VALUES (?, ?, ?, ?, ?)', [
        id,
        from,
        to,
        amount,
        random.text(this.noteBytes),
      ])
      if (rollsBack) {
        await connection.rollback()
        return
      }
    } catch (error) {
      if (!isDeadlock(error)) throw error
      await connection.rollback()
      return
    }
    const entry: Transfer = {
      id,
      from,
      to,
      amount,
      lsnBefore: await lsnOf(connection),
      lsnAfter: Number.POSITIVE_INFINITY,
    }
    try {
      await connection.commit()
      entry.lsnAfter = await lsnOf(connection)
    } finally {
      this.journal.push(entry)
    }
  }

  /**
   * Compares a restored copy with the journal.
   * @param copy a server on a datadir restored at `lsn`
   * @param lsn where the copy was taken; Infinity for "all of it"
   * @returns what is wrong, empty if the copy holds exactly the transactions committed by `lsn`
   */
  async verify(copy: MariadbServer, lsn: number): Promise<string[]> {
    const wrong: string[] = []
    const rows = await copy.sql<{ id: number; source: number; target: number; amount: number }>(
      `SELECT id, source, target, amount FROM ${this.database}.transfer`,
    )
    const present = new Map(rows.map(row => [row.id, row]))
    const balances = new Array<number>(this.accounts + 1).fill(openingBalance)
    for (const { source, target, amount } of rows) {
      balances[source] = balances[source]! - amount
      balances[target] = balances[target]! + amount
    }
    for (const transfer of this.journal) {
      const row = present.get(transfer.id)
      present.delete(transfer.id)
      if (row === undefined) {
        if (transfer.lsnAfter <= lsn && transfer.lsnAfter < Number.POSITIVE_INFINITY) {
          wrong.push(`transfer ${transfer.id}, committed by LSN ${transfer.lsnAfter}, is missing at ${lsn}`)
        }
        continue
      }
      if (transfer.lsnBefore >= lsn) {
        wrong.push(`transfer ${transfer.id}, committed after LSN ${transfer.lsnBefore}, is there at ${lsn}`)
      }
      if (row.source !== transfer.from || row.target !== transfer.to || row.amount !== transfer.amount) {
        wrong.push(`transfer ${transfer.id} reads ${JSON.stringify(row)}`)
      }
    }
    for (const id of present.keys()) wrong.push(`transfer ${id} is there and was never committed`)

    const accounts = await copy.sql<{ id: number; balance: number }>(
      `SELECT id, balance FROM ${this.database}.account ORDER BY id`,
    )
    if (accounts.length !== this.accounts)
      wrong.push(`${accounts.length} accounts instead of ${this.accounts}`)
    let sum = 0
    for (const { id, balance } of accounts) {
      sum += balance
      if (balance !== balances[id]) {
        wrong.push(`account ${id} has ${balance}, the transfers there make ${balances[id]}`)
      }
    }
    const total = this.accounts * openingBalance
    if (sum !== total) wrong.push(`the balances sum up to ${sum} instead of ${total}`)
    return wrong
  }
}

async function lsnOf(connection: PoolConnection): Promise<number> {
  const rows = await connection.query<{ Value: string }[]>("SHOW GLOBAL STATUS LIKE 'Innodb_lsn_current'")
  return Number(rows[0]!.Value)
}

function errorNumber(error: unknown): number | undefined {
  return typeof error === 'object' && error !== null && 'errno' in error ? Number(error.errno) : undefined
}

function isDeadlock(error: unknown): boolean {
  const errno = errorNumber(error)
  return errno === 1213 || errno === 1205
}

/** Whether the connection broke, rather than the statement. */
function isGone(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'fatal' in error && error.fatal === true
}
