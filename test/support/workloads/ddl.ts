// A random but repeatable mix of schema changes with rows in between.
import type { MariadbServer } from '../mariadb.ts'
import { SeededRandom } from './random.ts'

export type DdlOptions = {
  seed?: number
  /** Statements to run. */
  steps: number
  /** Default `ddl`. */
  database?: string
  /** Tables that exist at the same time at most. Default 8. */
  tablesMax?: number
}

type Table = { name: string; columns: number; partitioned: boolean; indexes: string[] }

const rowFormats = ['DYNAMIC', 'COMPACT', 'REDUNDANT'] as const

/**
 * Runs `steps` statements and returns them. What the workload knows of the tables keeps every statement
 * valid, so an error is always news.
 */
export async function runDdl(server: MariadbServer, options: DdlOptions): Promise<string[]> {
  const mixer = new DdlMixer(server, options)
  await mixer.setup()
  for (let step = 0; step < options.steps; step++) await mixer.step()
  return mixer.statements
}

export class DdlMixer {
  /** Every statement so far, in order. */
  readonly statements: string[] = []
  private readonly server: MariadbServer
  private readonly random: SeededRandom
  private readonly database: string
  private readonly tablesMax: number
  private tables: Table[] = []
  private nextName = 1

  constructor(server: MariadbServer, options: Omit<DdlOptions, 'steps'>) {
    this.server = server
    this.random = new SeededRandom(options.seed ?? 1)
    this.database = options.database ?? 'ddl'
    this.tablesMax = options.tablesMax ?? 8
  }

  async setup(): Promise<void> {
    await this.run(`CREATE DATABASE ${this.database}`)
  }

  /** One statement, chosen at random from those that are possible. */
  async step(): Promise<void> {
    if (this.tables.length === 0) return await this.create()
    const table = this.random.pick(this.tables)
    const dice = this.random.below(100)
    if (dice < 12 && this.tables.length < this.tablesMax) await this.create()
    else if (dice < 40) await this.insert(table)
    else if (dice < 48)
      await this.run(`UPDATE ${this.at(table)} SET filler = REVERSE(filler) WHERE id % 3 = 0`)
    else if (dice < 54) await this.run(`DELETE FROM ${this.at(table)} WHERE id % 7 = ${this.random.below(7)}`)
    else if (dice < 62) await this.addColumn(table)
    else if (dice < 68) await this.dropColumn(table)
    else if (dice < 75) await this.addOrDropIndex(table)
    else if (dice < 80) await this.rename(table)
    else if (dice < 85) await this.run(`TRUNCATE TABLE ${this.at(table)}`)
    else if (dice < 89) await this.drop(table)
    else if (dice < 92) await this.rebuild(table)
    else if (dice < 94) await this.run(`OPTIMIZE TABLE ${this.at(table)}`)
    else if (dice < 97) await this.partition(table)
    else await this.swap()
  }

  private at(table: Table): string {
    return `${this.database}.${table.name}`
  }

  private async run(statement: string): Promise<void> {
    this.statements.push(statement)
    try {
      await this.server.sql(statement)
    } catch (error) {
      throw new Error(`step ${this.statements.length}: ${statement}: ${String(error)}`, { cause: error })
    }
  }

  private async create(): Promise<void> {
    const partitioned = this.random.below(4) === 0
    const table: Table = { name: `t${this.nextName++}`, columns: 0, partitioned, indexes: [] }
    this.tables.push(table)
    await this.run(
      `CREATE TABLE ${this.at(table)} (id INT AUTO_INCREMENT PRIMARY KEY, filler VARCHAR(400), big MEDIUMTEXT)` +
        ` ENGINE=InnoDB ROW_FORMAT=${this.random.pick(rowFormats)}` +
        (partitioned ? ` PARTITION BY HASH (id) PARTITIONS ${2 + this.random.below(3)}` : ''),
    )
  }

  private async insert(table: Table): Promise<void> {
    const rows: string[] = []
    const count = 1 + this.random.below(120)
    const bigBytes = this.random.below(6) === 0 ? 20_000 : 100
    for (let row = 0; row < count; row++) {
      const big = row % 20 === 0 ? `'${this.random.text(this.random.below(bigBytes))}'` : 'NULL'
      rows.push(`('${this.random.text(this.random.below(380))}',${big})`)
    }
    await this.run(`INSERT INTO ${this.at(table)} (filler, big) VALUES ${rows.join(',')}`)
  }

  private async addColumn(table: Table): Promise<void> {
    if (table.columns >= 6) return await this.insert(table)
    const name = `c${++table.columns}`
    const where = this.random.pick(['', ' FIRST', ' AFTER id'])
    const how = this.random.pick(['INSTANT', 'COPY', 'INPLACE'])
    await this.run(
      `ALTER TABLE ${this.at(table)} ADD COLUMN ${name} VARCHAR(40) DEFAULT '${this.random.text(9)}'${where}, ALGORITHM=${how}`,
    )
  }

  private async dropColumn(table: Table): Promise<void> {
    if (table.columns === 0) return await this.insert(table)
    const name = `c${table.columns--}`
    await this.run(
      `ALTER TABLE ${this.at(table)} DROP COLUMN ${name}, ALGORITHM=${this.random.pick(['INSTANT', 'COPY'])}`,
    )
  }

  private async addOrDropIndex(table: Table): Promise<void> {
    const existing = table.indexes.pop()
    if (existing !== undefined) {
      return await this.run(`ALTER TABLE ${this.at(table)} DROP INDEX ${existing}`)
    }
    table.indexes.push('i')
    const how = this.random.pick(['INPLACE', 'COPY'])
    await this.run(
      `ALTER TABLE ${this.at(table)} ADD INDEX i (filler(${10 + this.random.below(100)})), ALGORITHM=${how}`,
    )
  }

  private async rename(table: Table): Promise<void> {
    const from = this.at(table)
    table.name = `t${this.nextName++}`
    await this.run(`RENAME TABLE ${from} TO ${this.at(table)}`)
  }

  /** Two tables change names in one statement, with a third name in between. */
  private async swap(): Promise<void> {
    const [a, b] = this.tables
    if (a === undefined || b === undefined) return await this.create()
    const between = `${this.database}.t${this.nextName++}`
    await this.run(
      `RENAME TABLE ${this.at(a)} TO ${between}, ${this.at(b)} TO ${this.at(a)}, ${between} TO ${this.at(b)}`,
    )
    const name = a.name
    a.name = b.name
    b.name = name
  }

  private async drop(table: Table): Promise<void> {
    this.tables = this.tables.filter(other => other !== table)
    await this.run(`DROP TABLE ${this.at(table)}`)
  }

  private async rebuild(table: Table): Promise<void> {
    await this.run(
      `ALTER TABLE ${this.at(table)} ROW_FORMAT=${this.random.pick(rowFormats)}, ALGORITHM=${this.random.pick(['COPY', 'INPLACE'])}`,
    )
  }

  private async partition(table: Table): Promise<void> {
    if (table.partitioned) {
      table.partitioned = false
      return await this.run(`ALTER TABLE ${this.at(table)} REMOVE PARTITIONING`)
    }
    table.partitioned = true
    await this.run(
      `ALTER TABLE ${this.at(table)} PARTITION BY HASH (id) PARTITIONS ${2 + this.random.below(3)}`,
    )
  }
}
