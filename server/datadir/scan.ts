/**
 * What a MariaDB datadir holds: which files are tablespaces, with which ids and page formats.
 *
 * Nothing but the files themselves is asked: ids, flags and sizes come from page 0 of each (fsp0fsp.h). A datadir may
 * be that of a running server, so files may come and go while they are looked at; a file that vanishes is left out, and
 * one whose page 0 is still blank is listed as `unborn`: the redo log tells the rest of its story.
 */
import { type FileHandle, readdir, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import {
  FIL_PAGE_OFFSET,
  FIL_PAGE_SPACE_ID,
  FSP_FREE_LIMIT,
  FSP_SIZE,
  FSP_SPACE_ID,
  isZeroPage,
  read4,
  verifyPage,
} from '../../parser/page-format.ts'
import {
  encryptionInfoOffset,
  InvalidSpaceFlagsError,
  readSpaceFormat,
  type SpaceFormat,
} from '../../parser/space-flags.ts'
import { type PalimpsestError, retryError } from '../shared/errors.ts'
import { DatadirError, explainSystemError, isMissing } from './errors.ts'
import { openServerFile, type ServerFiles, serverFilesOf } from './server-files.ts'

/** One file of a tablespace. All tablespaces have exactly one, but for the system tablespace, which may have several. */
export interface SpaceFilePart {
  readonly path: string
  /** Page number of the file's first page. */
  readonly firstPage: number
  readonly pages: number
}

export type SpaceKind = 'system' | 'undo' | 'table'

export interface SpaceFile {
  readonly space: number
  /**
   * Relative to the datadir, as the redo log names it: `ibdata1`, `undo001`, `test/t1.ibd`. With DATA DIRECTORY the
   * absolute path of the file. A system tablespace of several files has them all, with their sizes in pages but for the
   * last: `ibdata1:768,ibdata2`.
   */
  readonly name: string
  readonly kind: SpaceKind
  readonly format: SpaceFormat
  readonly parts: readonly SpaceFilePart[]
  /** Pages in the file or files now; a live file may grow. */
  readonly pages: number
  /** FSP_SIZE and FSP_FREE_LIMIT as page 0 has them; a running server may hold newer ones in memory. */
  readonly fspSize: number
  readonly fspFreeLimit: number
  /** Inode of the first part: another one later means that the file was replaced. */
  readonly inode: bigint
  /** DATA DIRECTORY: name is an absolute path. */
  readonly external: boolean
  /** Whose files these have to be. */
  readonly files: ServerFiles
}

export interface DatadirScan {
  readonly datadir: string
  /** innodb_page_size. */
  readonly pageSize: number
  /** System tablespace first, then undo tablespaces, then the rest by name. */
  readonly spaces: readonly SpaceFile[]
  /** Files that are to become tablespaces but whose page 0 is not written yet. */
  readonly unborn: readonly string[]
  readonly bytes: number
}

export interface ScanOptions {
  /** A running server: a page 0 that reads badly is read again, and an empty one is no error. */
  readonly live?: boolean
  readonly signal?: AbortSignal
  /** Whether a datadir without ib_logfile0 will do. */
  readonly withoutLog?: boolean
}

const PAGE_SIZE_MIN = 4096
const PAGE_0_BYTES_MAX = 65536
const PAGE_0_ATTEMPTS = 20
const PAGE_0_RETRY_MS = 25
/** A path has 4096 bytes at most. */
const LINK_BYTES_MAX = 8192

export function isUndoName(name: string): boolean {
  return /^undo\d{3}$/.test(name)
}

/** Directories in a datadir that hold no InnoDB tables, or not ours. */
function isDatabaseDirectory(name: string): boolean {
  return (
    !name.startsWith('.') &&
    name !== 'lost+found' &&
    !name.startsWith('#innodb') &&
    !name.startsWith('#rocksdb')
  )
}

/** @throws DatadirError when this is no datadir of a MariaDB whose redo log could be followed */
export async function scanDatadir(datadir: string, options: ScanOptions = {}): Promise<DatadirScan> {
  const root = resolve(datadir)
  let names: string[]
  try {
    names = (await readdir(root)).sort()
  } catch (error) {
    throw explainSystemError(root, error)
  }
  refuseStrangers(root, names, options.withoutLog ?? false)
  const scanner = new Scanner(root, await serverFilesOf(root), options)
  const system = await scanner.system(names)
  for (const name of names.filter(isUndoName))
    await scanner.add({ path: join(root, name), name, kind: 'undo' })
  for (const directory of await directories(root)) await scanner.database(directory)
  const pageSize = system.format.logicalSize
  const spaces = await onePerId([system, ...scanner.spaces], pageSize, options)
  let bytes = 0
  for (const space of spaces) bytes += space.pages * space.format.physicalSize
  return { datadir: root, pageSize, spaces, unborn: scanner.unborn, bytes }
}

/** In the order of a scan's result. @throws PalimpsestError for two files with one id, or other pages than the server's */
async function onePerId(
  found: readonly SpaceFile[],
  pageSize: number,
  options: ScanOptions,
): Promise<SpaceFile[]> {
  const bySpace = new Map<number, SpaceFile>()
  for (const space of found) {
    const other = bySpace.get(space.space)
    if (other && (!options.live || (await areBoth(space, other)))) throw twiceError(space, other, options)
    if (space.format.logicalSize !== pageSize)
      throw new DatadirError(
        space.parts[0]!.path,
        `has a page size of ${space.format.logicalSize}, but the system tablespace has ${pageSize}`,
      )
    // While a table is renamed, a scan may meet it under both names; the later one is the newer.
    bySpace.set(space.space, space)
  }
  return [...bySpace.values()].sort(compareSpaces)
}

const KIND_ORDER: Record<SpaceKind, number> = { system: 0, undo: 1, table: 2 }

function compareSpaces(a: SpaceFile, b: SpaceFile): number {
  return KIND_ORDER[a.kind] - KIND_ORDER[b.kind] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
}

async function directories(root: string): Promise<string[]> {
  const result: string[] = []
  for (const entry of await readdir(root, { withFileTypes: true })) {
    if (!isDatabaseDirectory(entry.name)) continue
    if (entry.isDirectory()) result.push(entry.name)
    else if (entry.isSymbolicLink()) {
      const is = await stat(join(root, entry.name)).then(
        s => s.isDirectory(),
        () => false,
      )
      if (is) result.push(entry.name)
    }
  }
  return result.sort()
}

/** Datadirs that look like one of ours at first sight. */
function refuseStrangers(root: string, names: readonly string[], withoutLog: boolean): void {
  const have = new Set(names)
  if (have.has('mysql.ibd') || have.has('#innodb_redo'))
    throw new DatadirError(root, 'is a datadir of MySQL 8 or later; only MariaDB 10.8 and later can be read')
  if (!have.has('ibdata1'))
    throw new DatadirError(
      root,
      names.length === 0
        ? 'is empty; give the datadir of a MariaDB server'
        : 'has no ibdata1; is this the datadir of a MariaDB server with InnoDB? (see SELECT @@datadir)',
    )
  if (!have.has('ib_logfile0') && !withoutLog)
    throw new DatadirError(
      root,
      have.has('xtrabackup_checkpoints') || have.has('mariadb_backup_checkpoints')
        ? 'has no ib_logfile0: this is a backup that was not prepared; run "mariadb-backup --prepare" on it first'
        : 'has no ib_logfile0; if innodb_log_group_home_dir points elsewhere, that is not supported',
    )
}

/** Beside a running server it may pass: IMPORT TABLESPACE gives a file that was copied there an id of its own. */
function twiceError(space: SpaceFile, other: SpaceFile, { live }: ScanOptions): PalimpsestError {
  const { path } = space.parts[0]!
  const message = `has the same tablespace id ${space.space} as ${other.parts[0]!.path}; move the one that is not in use out of the datadir`
  return live ? retryError(`${path}: ${message}`) : new DatadirError(path, message)
}

/** Two files with one id are really there, other than while one is renamed: a copy, or what is to be imported. */
async function areBoth(a: SpaceFile, b: SpaceFile): Promise<boolean> {
  const inodes = async (space: SpaceFile): Promise<bigint | undefined> =>
    (await stat(space.parts[0]!.path, { bigint: true }).catch(() => undefined))?.ino
  return a.inode !== b.inode && (await inodes(a)) === a.inode && (await inodes(b)) === b.inode
}

/** A link file is one line: the absolute path of the .ibd file. */
async function readLink(files: ServerFiles, path: string): Promise<string | undefined> {
  try {
    const file = await openServerFile(files, path)
    const buffer = Buffer.alloc(LINK_BYTES_MAX)
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0).finally(() => file.close())
    const target = buffer.toString('utf8', 0, bytesRead).replace(/[\s\0]+$/, '')
    if (!target.startsWith('/') || !target.endsWith('.ibd'))
      throw new DatadirError(path, `does not name an .ibd file but "${target.slice(0, 200)}"`)
    return target
  } catch (error) {
    if (isMissing(error)) return undefined
    throw explainSystemError(path, error)
  }
}

interface FirstPage {
  readonly format: SpaceFormat
  readonly page: Uint8Array
  readonly bytes: number
  readonly inode: bigint
}

/** Page 0, checked; 'unborn' when it is blank, 'gone' when the file is. */
async function readFirstPage(
  files: ServerFiles,
  path: string,
  live: boolean,
): Promise<FirstPage | 'unborn' | 'gone'> {
  let reason = ''
  for (let attempt = 0; attempt < (live ? PAGE_0_ATTEMPTS : 1); attempt++) {
    if (attempt > 0) await new Promise(done => setTimeout(done, PAGE_0_RETRY_MS))
    let file: FileHandle
    try {
      file = await openServerFile(files, path)
    } catch (error) {
      if (isMissing(error)) return 'gone'
      throw explainSystemError(path, error)
    }
    try {
      const info = await file.stat({ bigint: true })
      const bytes = Number(info.size)
      const buffer = Buffer.alloc(PAGE_0_BYTES_MAX)
      const { bytesRead } = await file.read(buffer, 0, PAGE_0_BYTES_MAX, 0)
      if (bytesRead < PAGE_SIZE_MIN || isZeroPage(buffer, PAGE_SIZE_MIN)) {
        reason = 'unborn'
        continue
      }
      const format = readSpaceFormat(buffer.subarray(0, bytesRead))
      const page = buffer.subarray(0, format.physicalSize)
      const check = verifyPage(page, format)
      if (check.ok && read4(page, FIL_PAGE_OFFSET) === 0) {
        refuseEncrypted(path, page, format)
        return { format, page, bytes, inode: info.ino }
      }
      reason = check.ok ? 'the page number in page 0 is not 0' : check.reason
    } catch (error) {
      if (!(error instanceof InvalidSpaceFlagsError)) throw explainSystemError(path, error)
      reason = error.message
    } finally {
      await file.close()
    }
  }
  if (reason === 'unborn') return 'unborn'
  throw new DatadirError(
    path,
    `page 0 is damaged: ${reason}; if it is no tablespace of this server, move it away`,
  )
}

const CRYPT_TYPE_UNENCRYPTED = 0

/** `fil_space_read_crypt_data` (fil0crypt.cc): magic (6), type (1), length (1), iv (length), minimal key version (4). */
function refuseEncrypted(path: string, page: Uint8Array, format: SpaceFormat): void {
  if (!format.encryptedHint) return
  const at = encryptionInfoOffset(format) + 6
  const ivBytes = page[at + 1]!
  const minKeyVersion = ivBytes === 16 ? read4(page, at + 2 + ivBytes) : 1
  // Encryption information with key version 0 stands in tablespaces that could have been encrypted and were not.
  if (page[at] === CRYPT_TYPE_UNENCRYPTED || minKeyVersion === 0) return
  throw new DatadirError(
    path,
    'is an encrypted tablespace, which cannot be read; decrypt it first (ALTER TABLE … ENCRYPTED=NO, or innodb_encrypt_tables=OFF ' +
      'and wait until INFORMATION_SCHEMA.INNODB_TABLESPACES_ENCRYPTION shows MIN_KEY_VERSION 0)',
  )
}

interface FoundFile {
  readonly path: string
  /** As the redo log has it. */
  readonly name: string
  readonly kind: 'undo' | 'table'
  /** DATA DIRECTORY. */
  readonly external?: boolean
  /** It may not be there. */
  readonly optional?: boolean
}

class Scanner {
  readonly spaces: SpaceFile[] = []
  readonly unborn: string[] = []
  readonly #root: string
  readonly #files: ServerFiles
  readonly #options: ScanOptions

  constructor(root: string, files: ServerFiles, options: ScanOptions) {
    this.#root = root
    this.#files = files
    this.#options = options
  }

  async add({ path, name, kind, external = false, optional = false }: FoundFile): Promise<void> {
    const first = await readFirstPage(this.#files, path, this.#options.live ?? false)
    if (first === 'gone') {
      if (external && !optional && !this.#options.live)
        throw new DatadirError(
          path,
          'is named by an .isl link in the datadir but does not exist; restore it, or remove the link',
        )
      return
    }
    if (first === 'unborn') {
      this.unborn.push(name)
      return
    }
    const { format, page, bytes, inode } = first
    const space = read4(page, FSP_SPACE_ID)
    if (space === 0 || space !== read4(page, FIL_PAGE_SPACE_ID))
      throw new DatadirError(
        path,
        `page 0 names two tablespace ids, ${space} and ${read4(page, FIL_PAGE_SPACE_ID)}`,
      )
    const pages = Math.floor(bytes / format.physicalSize)
    this.spaces.push({
      space,
      name,
      kind,
      format,
      parts: [{ path, firstPage: 0, pages }],
      pages,
      fspSize: read4(page, FSP_SIZE),
      fspFreeLimit: read4(page, FSP_FREE_LIMIT),
      inode,
      external,
      files: this.#files,
    })
  }

  /** The tablespaces of one database. */
  async database(directory: string): Promise<void> {
    const root = join(this.#root, directory)
    let files: string[]
    try {
      files = (await readdir(root)).sort()
    } catch (error) {
      if (isMissing(error)) return
      throw explainSystemError(root, error)
    }
    const links = new Set(files.filter(f => f.endsWith('.isl')))
    for (const file of files) {
      this.#options.signal?.throwIfAborted()
      const path = join(root, file)
      if (file.endsWith('.ibd') && file !== '.ibd') {
        // A file beside a link of the same name is not the table's: the link says where that is.
        if (!links.has(`${file.slice(0, -4)}.isl`))
          await this.add({ path, name: `${directory}/${file}`, kind: 'table' })
      } else if (file.endsWith('.isl')) {
        const target = await readLink(this.#files, path)
        if (target === undefined) continue
        // RENAME TABLE to another database leaves the old link behind, without a table. InnoDB does not look at it.
        const optional = !files.includes(`${file.slice(0, -4).split('#')[0]}.frm`)
        await this.add({ path: target, name: target, kind: 'table', external: true, optional })
      }
    }
  }

  /**
   * The system tablespace: ibdata1, and as many of ibdata2, ibdata3, … as FSP_SIZE asks for. innodb_data_file_path is
   * nowhere recorded, but files are always filled in the order of their numbers and only the last may grow.
   */
  async system(names: readonly string[]): Promise<SpaceFile> {
    const root = this.#root
    const path = join(root, 'ibdata1')
    const first = await readFirstPage(this.#files, path, this.#options.live ?? false)
    if (first === 'gone' || first === 'unborn')
      throw new DatadirError(path, 'page 0 is blank; the system tablespace was never initialised')
    const { format, page, inode } = first
    const space = read4(page, FSP_SPACE_ID)
    if (space !== 0) throw new DatadirError(path, `has tablespace id ${space} instead of 0`)
    const fspSize = read4(page, FSP_SIZE)
    const parts: SpaceFilePart[] = []
    let pages = 0
    const candidates = names
      .filter(n => /^ibdata[1-9]\d{0,3}$/.test(n))
      .sort((a, b) => Number(a.slice(6)) - Number(b.slice(6)))
    for (const name of candidates) {
      if (pages >= fspSize) break
      const part = join(root, name)
      const filePages = Math.floor((await stat(part)).size / format.physicalSize)
      parts.push({ path: part, firstPage: pages, pages: filePages })
      pages += filePages
    }
    if (pages < fspSize)
      throw new DatadirError(
        path,
        `the system tablespace has ${fspSize} pages, but ${candidates.join(', ')} hold only ${pages}; ` +
          'further files must be named ibdata2, ibdata3, … and lie in the datadir',
      )
    const name = parts
      .map((part, i) => {
        const base = part.path.slice(root.length + 1)
        return i < parts.length - 1 ? `${base}:${part.pages}` : base
      })
      .join(',')
    return {
      space,
      name,
      kind: 'system',
      format,
      parts,
      pages,
      fspSize,
      fspFreeLimit: read4(page, FSP_FREE_LIMIT),
      inode,
      external: false,
      files: this.#files,
    }
  }
}

/**
 * One table's tablespace of a running server, by the name that the redo log has for it.
 * @param external `name` is an absolute path
 * @returns undefined when there is no such file, or nothing in it yet
 */
export async function scanTable(
  datadir: string,
  name: string,
  external: boolean,
): Promise<SpaceFile | undefined> {
  const root = resolve(datadir)
  const scanner = new Scanner(root, await serverFilesOf(root), { live: true })
  await scanner.add({ path: external ? name : join(root, name), name, kind: 'table', external })
  return scanner.spaces[0]
}

/** Splits the name of a system tablespace back into files. @throws DatadirError */
export function systemFiles(name: string): { readonly name: string; readonly pages: number | undefined }[] {
  return name.split(',').map((part, i, all) => {
    const match = /^(ibdata\d{1,4})(?::(\d{1,10}))?$/.exec(part)
    if (!match || i < all.length - 1 !== (match[2] !== undefined))
      throw new DatadirError(name, 'is not a list of system tablespace files')
    return { name: match[1]!, pages: match[2] === undefined ? undefined : Number(match[2]) }
  })
}
