/**
 * Makes the files beside InnoDB's agree with InnoDB at one LSN.
 *
 * A schema change touches both worlds, in steps, and only InnoDB's steps stand in the redo log. What the server would
 * find there after a crash at this LSN is exact (dictionary/dictionary.ts); a .frm's LSN is when the agent noticed it, some
 * milliseconds off. So InnoDB decides: each of its tables is given the definition that has its columns and indexes, out of
 * all that were seen around this LSN; a definition without a table is left out; and what a statement left under
 * intermediate names is brought to an end by the server itself, which is handed a ddl_recovery.log that says how.
 * docs/attach.md tells which statement stops where.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { LSN_MAX } from '../../protocol/ids.ts'
import type { FileItem } from '../../protocol/messages.ts'
import type { DdlAction } from './ddl-recovery-log.ts'
import { definitionFits, Fit } from './definition-fit.ts'
import type { DictionaryTable } from './dictionary/dictionary.ts'
import { parsePartitionNames, parseTableDefinition } from './table-definition.ts'

/** A version of a file, with its contents. */
export interface FileContent {
  readonly path: string
  readonly lsn: Lsn
  readonly mode: number
  readonly mtimeMs: number
  readonly content: Buffer
}

export interface ReconcileSource {
  readonly lsn: Lsn
  /** Recovered as of the LSN. */
  readonly dictionary: readonly DictionaryTable[]
  /** What the timeline has at the LSN. */
  readonly files: readonly FileItem[]
  read(item: FileItem): Promise<Buffer>
  /** Versions put in a range of LSNs, in one directory. */
  versions(directory: string, suffix: string, from: Lsn, to: Lsn): Promise<FileContent[]>
  /** The name that a tablespace had before the one that it has at the LSN, without extension. */
  formerName(space: number): Promise<string | undefined>
}

export interface Reconciled {
  /** Files to be written as they are at the LSN. */
  readonly files: readonly FileItem[]
  /** Definitions of another moment. */
  readonly replaced: readonly FileContent[]
  readonly actions: readonly DdlAction[]
  readonly warnings: readonly string[]
  /** Where the tables' files lie, without extension, by tablespace; others than these do not exist at the LSN. */
  readonly spaceNames: ReadonlyMap<number, string>
  /** Tables for which nothing that was seen fits, which may be because it has not arrived yet. */
  readonly unmatched: readonly string[]
}

/** How far around the LSN versions are looked for, in bytes of redo; wider where nothing fits. */
const WINDOWS = [4 << 20, 256 << 20, Number.MAX_SAFE_INTEGER]
const READS_AT_ONCE = 16
const FRM = '.frm'
const PAR = '.par'

/** A table with its partitions: by what follows its name, `''` or `#P#p0`. */
type Members = Map<string, DictionaryTable>

interface Candidate {
  readonly frm: FileContent
  readonly par: FileContent | undefined
  readonly fit: number
  readonly sameName: boolean
}

export async function reconcile(source: ReconcileSource): Promise<Reconciled> {
  const work = new Reconciliation(source)
  await work.finishAlters()
  work.finishPartitions()
  await work.chooseDefinitions()
  return work.result()
}

class Reconciliation {
  readonly #s: ReconcileSource
  readonly #tables = new Map<string, Members>()
  readonly #actions: DdlAction[] = []
  readonly #warnings: string[] = []
  readonly #unmatched: string[] = []
  readonly #dropped = new Set<string>()
  readonly #replaced = new Map<string, FileContent>()
  /** What the .par files of a table named, at any moment looked at. */
  readonly #partitionLists = new Map<string, string[][]>()
  /** Tables amid a change of single partitions. */
  readonly #reorganised = new Set<string>()

  constructor(source: ReconcileSource) {
    this.#s = source
    for (const table of source.dictionary) {
      if (!table.name.includes('/') || isInternal(table.name)) continue
      const { base, suffix } = splitName(table.name)
      this.#members(base).set(suffix, table)
    }
  }

  #members(base: string): Members {
    let members = this.#tables.get(base)
    if (!members) {
      members = new Map()
      this.#tables.set(base, members)
    }
    return members
  }

  #delete(name: string): void {
    this.#actions.push({ kind: 'delete', name })
  }

  /**
   * ALTER TABLE, ALGORITHM=COPY: fill `#sql-alter-X`, rename t to `#sql-backup-X`, rename `#sql-alter-X` to t, drop
   * `#sql-backup-X`; with partitions one after the other. From the first `#sql-backup-X` on the new table is whole, and
   * the statement is brought to its end; before, the new table goes.
   */
  async finishAlters(): Promise<void> {
    for (const [backup, old] of [...this.#tables]) {
      if (!/\/#sql-backup-/i.test(backup)) continue
      const fresh = backup.replace(/\/#sql-backup-/i, '/#sql-alter-')
      const table = await this.#originalName(old)
      if (table === undefined) {
        this.#warnings.push(
          `${backup} is what a schema change left, but nothing tells which table it was; it stays`,
        )
        continue
      }
      const begun = Math.min(...[...old.values()].map(member => member.trxId))
      const target = this.#members(table)
      // Not renamed yet, in the middle of partitions that are.
      for (const [suffix, member] of [...target])
        if (member.trxId < begun) {
          this.#delete(member.name)
          target.delete(suffix)
        }
      for (const [suffix, member] of this.#tables.get(fresh) ?? []) {
        this.#actions.push({ kind: 'rename', name: member.name, newName: table + suffix })
        target.set(suffix, { ...member, name: table + suffix })
      }
      for (const member of old.values()) this.#delete(member.name)
      this.#tables.delete(fresh)
      this.#tables.delete(backup)
      if (target.size === 0) this.#tables.delete(table)
    }
    for (const [base, members] of [...this.#tables]) {
      if (!/\/#sql-alter-/i.test(base)) continue
      for (const member of members.values()) this.#delete(member.name)
      this.#tables.delete(base)
    }
  }

  async #originalName(old: Members): Promise<string | undefined> {
    for (const member of old.values()) {
      const former = member.space === 0 ? undefined : await this.#s.formerName(member.space)
      if (former !== undefined && !/\/#sql-/i.test(former)) return splitName(former).base
    }
    return undefined
  }

  /** ALTER TABLE … REORGANIZE PARTITION and the like make `#TMP#`, and put `#REN#` out of the way. */
  finishPartitions(): void {
    for (const [base, members] of this.#tables)
      for (const [suffix, member] of [...members]) {
        const match = /^(.*)#(?:TMP|REN)#$/i.exec(suffix)
        if (!match) continue
        members.delete(suffix)
        this.#reorganised.add(base)
        const plain = match[1]!
        if (members.has(plain) || /#TMP#$/i.test(suffix)) {
          this.#delete(member.name)
          continue
        }
        this.#actions.push({ kind: 'rename', name: member.name, newName: base + plain })
        members.set(plain, { ...member, name: base + plain })
      }
  }

  async chooseDefinitions(): Promise<void> {
    const { files } = this.#s
    const current = new Map<string, FileContent>()
    const rest = files.filter(file => file.path.endsWith(FRM) || file.path.endsWith(PAR))
    const worker = async (): Promise<void> => {
      for (let item = rest.shift(); item; item = rest.shift())
        current.set(item.path, { ...item, content: await this.#s.read(item) })
    }
    await Promise.all(Array.from({ length: READS_AT_ONCE }, worker))

    // Definitions of tables that InnoDB does not have.
    for (const [path, file] of current) {
      if (!path.endsWith(FRM)) continue
      const base = path.slice(0, -FRM.length)
      if (this.#tables.has(base)) continue
      if (parseTableDefinition(file.content)?.engine !== 'innodb') continue
      this.#dropped.add(path)
      this.#dropped.add(base + PAR)
    }

    const best = new Map<string, Candidate | undefined>()
    for (const [base, members] of this.#tables) {
      const frm = current.get(base + FRM)
      const par = current.get(base + PAR)
      best.set(base, frm && this.#candidate(base, members, frm, par ? [par] : []))
    }
    // Another table's definition may look just the same, so the tables' own come first, and what is half renamed is
    // made whole before others are looked at.
    await this.#searchAll(best, true)
    await this.#finishPartitioned(best)
    await this.#searchAll(best, false)
    for (const [base, candidate] of best) this.#settle(base, candidate, current)
  }

  async #searchAll(best: Map<string, Candidate | undefined>, own: boolean): Promise<void> {
    for (const window of WINDOWS) {
      const open = [...best].filter(([, candidate]) => candidate?.fit !== Fit.EXACT).map(([base]) => base)
      if (open.length === 0) return
      await this.#search(open, window, best, own)
    }
  }

  /**
   * RENAME TABLE, DROP TABLE and CREATE TABLE go through the partitions one by one. A renaming is brought to its end; what
   * was not whole yet, or not any more, goes.
   */
  async #finishPartitioned(best: Map<string, Candidate | undefined>): Promise<void> {
    const isOpen = (base: string): boolean => (best.get(base)?.fit ?? Fit.COLUMNS) >= Fit.NO_PARTITIONS
    const partitioned = [...this.#tables].filter(([, members]) => !members.has(''))
    for (const [base, members] of partitioned) {
      if (!this.#tables.has(base)) continue
      const former = await this.#originalName(members)
      const rest = former === undefined || former === base ? undefined : this.#tables.get(former)
      if (!rest || !(isOpen(base) || isOpen(former!))) continue
      if ([...rest.keys()].some(suffix => suffix === '' || members.has(suffix))) continue
      // What has the new name got it after the others were last touched.
      const renamed = Math.min(...[...members.values()].map(member => member.trxId))
      if ([...rest.values()].some(member => member.trxId >= renamed)) continue
      for (const [suffix, member] of rest) {
        this.#actions.push({ kind: 'rename', name: member.name, newName: base + suffix })
        members.set(suffix, { ...member, name: base + suffix })
      }
      this.#forget(former!, best)
      best.set(base, undefined)
      await this.#searchAll(best, true)
    }
    for (const [base, members] of partitioned) {
      if (!this.#tables.has(base) || !isOpen(base)) continue
      const names = [...members.keys()].map(suffix => suffix.slice(3))
      const more = (this.#partitionLists.get(base) ?? []).some(
        list => list.length > names.length && names.every(name => list.includes(name)),
      )
      if (!more || this.#reorganised.has(base)) continue
      for (const member of members.values()) this.#delete(member.name)
      this.#forget(base, best)
      this.#warnings.push(
        `${base} had some of its partitions only, amid a CREATE or DROP TABLE; it is left out`,
      )
    }
  }

  #forget(base: string, best: Map<string, Candidate | undefined>): void {
    this.#tables.delete(base)
    best.delete(base)
    this.#dropped.add(base + FRM)
    this.#dropped.add(base + PAR)
  }

  /** Looks through what was seen of the tables' directories within so many bytes of redo. */
  async #search(
    open: readonly string[],
    window: number,
    best: Map<string, Candidate | undefined>,
    own: boolean,
  ): Promise<void> {
    const { lsn } = this.#s
    const from = Math.max(0, lsn - window) as Lsn
    const to = Math.min(LSN_MAX, lsn + window) as Lsn
    for (const directory of new Set(open.map(base => base.slice(0, base.indexOf('/'))))) {
      const frms = await this.#s.versions(directory, FRM, from, to)
      const pars = await this.#s.versions(directory, PAR, from, to)
      // Those that hold at the LSN count however old they are.
      const present = best.values()
      for (const candidate of present) {
        if (!candidate?.frm.path.startsWith(`${directory}/`)) continue
        frms.push(candidate.frm)
        if (candidate.par) pars.push(candidate.par)
      }
      for (const base of open) {
        if (!base.startsWith(`${directory}/`)) continue
        const lists = pars.filter(file => file.path === base + PAR)
        if (lists.length > 0)
          this.#partitionLists.set(
            base,
            lists.map(file => parsePartitionNames(file.content) ?? []),
          )
        const members = this.#tables.get(base)!
        for (const frm of frms) {
          if (own && frm.path !== base + FRM) continue
          const candidate = this.#candidate(base, members, frm, pars)
          if (candidate && this.#isBetter(candidate, best.get(base))) best.set(base, candidate)
        }
      }
    }
  }

  #candidate(
    base: string,
    members: Members,
    frm: FileContent,
    pars: readonly FileContent[],
  ): Candidate | undefined {
    const definition = parseTableDefinition(frm.content)
    if (definition?.engine !== 'innodb') return undefined
    const partitions = [...members.keys()].filter(suffix => suffix !== '').map(suffix => suffix.slice(3))
    let fit = definitionFits(definition, [...members.values()][0]!, partitions)
    let par: FileContent | undefined
    if (partitions.length > 0) {
      par = pars
        .filter(file => sameNames(parsePartitionNames(file.content) ?? [], partitions))
        .sort((a, b) => this.#rank(a, base + PAR) - this.#rank(b, base + PAR))[0]
      if (!par) fit += Fit.NO_PARTITIONS
    }
    const sameName = frm.path === base + FRM
    // A table of another name is believed only if it is the same.
    if (!sameName && fit !== Fit.EXACT) return undefined
    return { frm, par, fit, sameName }
  }

  /** The table's own file first, and what is nearest. */
  #rank(file: FileContent, path: string): number {
    return Math.abs(file.lsn - this.#s.lsn) + (file.path === path ? 0 : 2 ** 52)
  }

  #isBetter(a: Candidate, b: Candidate | undefined): boolean {
    if (!b) return true
    if (a.fit !== b.fit) return a.fit < b.fit
    if (a.sameName !== b.sameName) return a.sameName
    return Math.abs(a.frm.lsn - this.#s.lsn) < Math.abs(b.frm.lsn - this.#s.lsn)
  }

  #settle(base: string, candidate: Candidate | undefined, current: ReadonlyMap<string, FileContent>): void {
    if (!candidate || candidate.fit >= Fit.OTHER) this.#unmatched.push(base)
    if (!candidate) return
    this.#use(base + FRM, candidate.frm, current)
    if (candidate.par) this.#use(base + PAR, candidate.par, current)
    else if (![...this.#tables.get(base)!.keys()].some(suffix => suffix !== '')) this.#dropped.add(base + PAR)
  }

  #use(path: string, file: FileContent, current: ReadonlyMap<string, FileContent>): void {
    if (current.get(path)?.content.equals(file.content)) return
    this.#dropped.add(path)
    this.#replaced.set(path, { ...file, path })
  }

  result(): Reconciled {
    return {
      files: this.#s.files.filter(
        ({ path }) => !this.#dropped.has(path) && !/^ddl_recovery(-backup)?\.log$/.test(path),
      ),
      replaced: [...this.#replaced.values()],
      actions: this.#actions,
      spaceNames: new Map(this.#s.dictionary.map(({ space, name }) => [space, name])),
      warnings: this.#warnings,
      unmatched: this.#unmatched,
    }
  }
}

/** InnoDB's own: parts of full-text indexes, and tables that it drops itself when it starts. */
function isInternal(name: string): boolean {
  return /\/(?:FTS_[0-9a-f]{16}_|#sql-ib)/i.test(name)
}

function splitName(name: string): { readonly base: string; readonly suffix: string } {
  const at = name.search(/#P#/i)
  return at < 0 ? { base: name, suffix: '' } : { base: name.slice(0, at), suffix: name.slice(at) }
}

function sameNames(a: readonly string[], b: readonly string[]): boolean {
  const names = new Set(a)
  return a.length === b.length && b.every(name => names.has(name))
}
