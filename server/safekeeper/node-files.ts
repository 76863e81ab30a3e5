/**
 * The small files of a node, beside its log: who it is (`node.json`), its term and vote (`vote.json`), and snapshots of
 * the cell's state (`snapshot-<index>.json`). Each is one line of JSON and a line with its CRC-32C in hexadecimal.
 *
 * node.json and the snapshots are replaced as a whole: written beside, synced, renamed, folder synced; node.json also has a copy,
 * written before it. vote.json has two places of 4096 bytes, made when the folder is, so that a vote needs no new space on a disk
 * that is full. Each vote is written to the first, synced, then to the second, synced: so what was said to anyone is in both, and
 * one place that is torn or has rotted hides nothing.
 */
import { join } from 'node:path'
import { z } from 'zod'
import { crc32c } from '../../protocol/crc32c.ts'
import { corruptError, invalidError } from '../shared/errors.ts'
import type { Disk, DiskFile } from '../shared/seams.ts'
import { Turns } from '../shared/turns.ts'
import { CellState } from './cell-state.ts'
import type { HardState, LogIndex, NodeId, Term } from './core/types.ts'

const NODE_NAME = 'node.json'
const NODE_COPY_NAME = 'node-copy.json'
const VOTE_NAME = 'vote.json'
const VOTE_PLACE_BYTES = 4096
const SNAPSHOT = /^snapshot-([0-9]{1,16})\.json$/

const nodeId = z.string().regex(/^[A-Za-z0-9_-]{1,32}\.[0-9a-f]{16}$/)
const memberSchema = z.object({ nodeId, address: z.string().max(300), zone: z.string().max(64) })
const nodeSchema = z.object({
  version: z.literal(1),
  nodeId,
  /** Empty: in no cell yet. */
  cellId: z.string().regex(/^([0-9a-f]{32})?$/),
  /** The cell's first members; none for a node that was added later. */
  seed: z.array(memberSchema).max(64),
  /** Acknowledged entries were lost to damage; see docs/consensus.md. */
  recovering: z.boolean(),
  /** That command is making a cell of its own of this folder, and was not finished; see docs/consensus.md and docs/backup.md. */
  unfinished: z.enum(['member recover', 'backup restore']).optional(),
})
export type NodeFile = Readonly<z.output<typeof nodeSchema>>
/** Commands that make a node's folder, or make it over. */
export type FolderMaker = NonNullable<NodeFile['unfinished']>

const voteSchema = z.object({
  version: z.literal(1),
  number: z.int().min(1),
  term: z.int().min(0),
  votedFor: nodeId.nullable(),
})

type VoteLine = z.output<typeof voteSchema>

function newest(places: readonly (VoteLine | Error | undefined)[]): VoteLine | undefined {
  let best: VoteLine | undefined
  for (const place of places)
    if (place !== undefined && !(place instanceof Error) && place.number > (best?.number ?? 0)) best = place
  return best
}

function isEven([first, second]: readonly (VoteLine | Error | undefined)[]): boolean {
  if (first instanceof Error || second instanceof Error) return false
  return first?.number === second?.number
}

export function nameOf(id: NodeId): string {
  return id.slice(0, id.lastIndexOf('.'))
}

export class NodeFiles {
  private readonly disk: Disk
  readonly dir: string
  private voteFile: DiskFile | undefined
  private voteNumber = 0
  private vote: HardState | undefined
  private node: NodeFile | undefined
  private readonly turns = new Turns()

  constructor(disk: Disk, dir: string) {
    this.disk = disk
    this.dir = dir
  }

  /**
   * Who this node is; undefined in an empty folder. Throws kind corrupt if neither node.json nor its copy can be read, and invalid if
   * what is being made of the folder is not finished, unless that is what the caller is about to do.
   */
  async loadNode(maker?: FolderMaker): Promise<NodeFile | undefined> {
    const node = await this.findNode()
    if (node?.unfinished !== undefined && node.unfinished !== maker)
      throw invalidError(
        `"palimpsest ${node.unfinished}" was begun on ${this.dir} and cut short: run it again`,
      )
    return node
  }

  private async findNode(): Promise<NodeFile | undefined> {
    let failure: unknown
    for (const name of [NODE_NAME, NODE_COPY_NAME]) {
      try {
        const node = await this.readNode(name)
        if (node === undefined) continue
        this.node = node
        if (name === NODE_COPY_NAME) await this.replace(NODE_NAME, encodeNode(node))
        return node
      } catch (error) {
        failure ??= error
      }
    }
    if (failure !== undefined) throw failure
    return undefined
  }

  private async readNode(name: string): Promise<NodeFile | undefined> {
    const path = join(this.dir, name)
    if (!(await this.disk.exists(path))) return undefined
    const parsed = nodeSchema.safeParse(parseLine(path, await this.disk.readFile(path)))
    if (!parsed.success) throw damaged(path, z.prettifyError(parsed.error))
    return parsed.data
  }

  /** Durable when it resolves. */
  saveNode(node: NodeFile): Promise<void> {
    return this.turns.run(async () => {
      this.node = node
      for (const name of [NODE_COPY_NAME, NODE_NAME]) await this.replace(name, encodeNode(node))
    })
  }

  /** Writes node.json or its copy anew if it does not read back. Returns their names. */
  checkNode(): Promise<string[]> {
    return this.turns.run(async () => {
      const repaired: string[] = []
      const { node } = this
      if (node === undefined) return repaired
      for (const name of [NODE_COPY_NAME, NODE_NAME]) {
        const found = await this.readNode(name).catch(() => undefined)
        if (JSON.stringify(found) === JSON.stringify(nodeSchema.parse(node))) continue
        await this.replace(name, encodeNode(node))
        repaired.push(name)
      }
      return repaired
    })
  }

  /** Makes vote.json, without a vote; before the node says anything to anyone. */
  async createVote(): Promise<void> {
    const path = join(this.dir, VOTE_NAME)
    await this.disk.remove(path)
    const file = await this.disk.open(path, 'create')
    try {
      await file.write([Buffer.alloc(2 * VOTE_PLACE_BYTES, ' ')], 0)
      await file.datasync()
    } finally {
      await file.close()
    }
    await this.disk.syncDir(this.dir)
  }

  /**
   * Throws kind corrupt where neither place can be read: the node might vote twice. Writes both anew where they differ, so that the next
   * damage does not meet a single copy.
   */
  async loadVote(): Promise<HardState> {
    const places = await this.readVotes()
    const [first, second] = places
    // One that was never written beside one that is torn: the very first write was cut, and told nobody.
    const isFirstCut = first instanceof Error && second === undefined
    const best = newest(places)
    if (best === undefined && !isFirstCut) for (const place of places) if (place instanceof Error) throw place
    this.voteNumber = best?.number ?? 0
    const vote = { term: (best?.term ?? 0) as Term, votedFor: best?.votedFor ?? undefined }
    this.vote = vote
    if (!isEven(places) && best !== undefined) await this.saveVote(vote)
    return vote
  }

  /** Of each place: what is there, undefined if it was never written, or why it cannot be read. */
  private async readVotes(): Promise<(VoteLine | Error | undefined)[]> {
    const path = join(this.dir, VOTE_NAME)
    const bytes = await this.disk.readFile(path).catch(error => {
      throw damaged(path, `cannot be read (${(error as NodeJS.ErrnoException).code})`)
    })
    if (bytes.length !== 2 * VOTE_PLACE_BYTES) throw damaged(path, `${bytes.length} bytes long`)
    return [0, 1].map(place => {
      const part = bytes.subarray(place * VOTE_PLACE_BYTES, (place + 1) * VOTE_PLACE_BYTES)
      if (part.every(byte => byte === 0x20)) return undefined
      try {
        const parsed = voteSchema.safeParse(parseLine(path, part))
        return parsed.success ? parsed.data : damaged(path, z.prettifyError(parsed.error))
      } catch (error) {
        return error as Error
      }
    })
  }

  /** Durable, twice, when it resolves. One at a time. Needs no new space. */
  saveVote(state: HardState): Promise<void> {
    return this.turns.run(() => this.writeVote(state))
  }

  private async writeVote(state: HardState): Promise<void> {
    this.voteFile ??= await this.disk.open(join(this.dir, VOTE_NAME), 'write')
    const number = ++this.voteNumber
    const line = JSON.stringify({
      version: 1,
      number,
      term: state.term,
      votedFor: state.votedFor ?? null,
    })
    const place = Buffer.alloc(VOTE_PLACE_BYTES, ' ')
    encodeLine(Buffer.from(line)).copy(place)
    for (const at of [0, VOTE_PLACE_BYTES]) {
      await this.voteFile.write([place], at)
      await this.voteFile.datasync()
    }
    this.vote = state
  }

  /** Writes vote.json anew if one of its places does not read back. Returns whether that was so. What fails must end the process. */
  checkVote(): Promise<boolean> {
    return this.turns.run(async () => {
      const { vote } = this
      if (vote === undefined) return false
      const places = await this.readVotes().catch(() => [undefined, undefined])
      const isRight = places.every(
        place =>
          place !== undefined &&
          !(place instanceof Error) &&
          place.number === this.voteNumber &&
          place.term === vote.term &&
          (place.votedFor ?? undefined) === vote.votedFor,
      )
      if (isRight || this.voteNumber === 0) return false
      await this.writeVote(vote)
      return true
    })
  }

  /** Indexes of the snapshots that are there, ascending. What a crash left half-done is removed. */
  async listSnapshots(): Promise<LogIndex[]> {
    const indexes: LogIndex[] = []
    for (const name of await this.disk.list(this.dir)) {
      const match = SNAPSHOT.exec(name)
      if (match !== null) indexes.push(Number(match[1]) as LogIndex)
      else if (name.endsWith('.tmp')) await this.disk.remove(join(this.dir, name))
    }
    return indexes.sort((a, b) => a - b)
  }

  /** Durable when it resolves. */
  async saveSnapshot(index: LogIndex, encoded: Uint8Array): Promise<void> {
    await this.replace(`snapshot-${index}.json`, encoded)
  }

  /** The snapshot's JSON as it was saved. Throws kind corrupt. */
  async readSnapshot(index: LogIndex): Promise<Buffer> {
    const path = join(this.dir, `snapshot-${index}.json`)
    return checkLine(path, await this.disk.readFile(path))
  }

  async loadSnapshot(index: LogIndex): Promise<CellState> {
    const bytes = await this.readSnapshot(index)
    try {
      const state = CellState.decode(bytes)
      if (state.last.index !== index) throw corruptError(`it is of index ${state.last.index}`)
      return state
    } catch (error) {
      throw damaged(join(this.dir, `snapshot-${index}.json`), (error as Error).message)
    }
  }

  async removeSnapshot(index: LogIndex): Promise<void> {
    await this.disk.remove(join(this.dir, `snapshot-${index}.json`))
  }

  private async replace(name: string, line: Uint8Array): Promise<void> {
    const path = join(this.dir, name)
    const temporary = `${path}.tmp`
    await this.disk.remove(temporary)
    const file = await this.disk.open(temporary, 'create')
    try {
      await file.write([encodeLine(line)], 0)
      await file.datasync()
    } finally {
      await file.close()
    }
    await this.disk.rename(temporary, path)
    await this.disk.syncDir(this.dir)
  }

  async close(): Promise<void> {
    await this.turns.done()
    await this.voteFile?.close()
    this.voteFile = undefined
  }
}

function encodeNode(node: NodeFile): Buffer {
  return Buffer.from(JSON.stringify(node))
}

function encodeLine(line: Uint8Array): Buffer {
  const crc = crc32c(line, 0, line.length).toString(16).padStart(8, '0')
  return Buffer.concat([line, Buffer.from(`\n${crc}\n`)])
}

/** The first line, if its CRC is right. */
function checkLine(path: string, bytes: Uint8Array): Buffer {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const end = buffer.indexOf('\n')
  if (end < 0) throw damaged(path, 'no line of JSON')
  const crc = crc32c(buffer, 0, end).toString(16).padStart(8, '0')
  if (buffer.toString('latin1', end + 1, end + 9) !== crc) throw damaged(path, 'wrong CRC-32C')
  return buffer.subarray(0, end)
}

function parseLine(path: string, bytes: Uint8Array): unknown {
  const line = checkLine(path, bytes)
  try {
    return JSON.parse(line.toString('utf8'))
  } catch (error) {
    throw damaged(path, (error as Error).message)
  }
}

function damaged(path: string, why: string) {
  return corruptError(
    `${path}: ${why}. Nothing was changed. Restore the file from a copy of this moment, or empty the folder: if the others ` +
      'of the cell are there, the node then gets everything from them',
  )
}
