/**
 * A disk in memory that can lose power: what was not synced is lost, kept or torn, as the caller chooses; creation and
 * renaming survive only after the folder was synced. Faults are made by hooks.
 */
import { dirname } from 'node:path'
import type { Disk, DiskFile } from '../../server/shared/seams.ts'

interface Content {
  bytes: Buffer
  /** As of the last datasync. */
  durable: Buffer
  /** Since then, in order. */
  pending: { position: number; data: Buffer }[]
}

/** Memory that was allocated with room to grow: what lies behind a buffer in it is zero and nobody else's. */
const roomy = new WeakSet<ArrayBufferLike>()

/** The bytes and zeros up to `length`: in place where there is room. */
function extended(bytes: Buffer, length: number): Buffer {
  if (roomy.has(bytes.buffer) && bytes.buffer.byteLength >= length)
    return Buffer.from(bytes.buffer, 0, length)
  const memory = new ArrayBuffer(Math.max(length, bytes.length * 2))
  roomy.add(memory)
  const out = Buffer.from(memory, 0, length)
  bytes.copy(out)
  return out
}

function fault(code: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: simulated`), { code })
}

export class MemoryDisk implements Disk {
  private files = new Map<string, Content>()
  private durableNames = new Map<string, Content>()
  private dirs = new Set<string>()
  /** Called before each operation; may throw. */
  hook: (operation: 'write' | 'datasync' | 'create', path: string, bytes: number) => void = () => {}
  /** Total bytes of all files before writes and creations fail with ENOSPC. */
  capacity = Number.POSITIVE_INFINITY
  syncs = 0
  /** A disk that says it has synced and has not. */
  lies = false

  get used(): number {
    let bytes = 0
    for (const file of this.files.values()) bytes += file.bytes.length
    return bytes
  }

  /** Writes to the same bytes as `open` would, for damage. */
  content(path: string): Buffer {
    return this.files.get(path)!.bytes
  }

  /** Turns bits of what was synced and of what is read: they stay so until they are written over. */
  flip(path: string, offset: number, bits: number): void {
    const { bytes, durable } = this.files.get(path)!
    bytes[offset]! ^= bits
    if (durable.buffer !== bytes.buffer && offset < durable.length) durable[offset]! ^= bits
  }

  paths(): string[] {
    return [...this.files.keys()].sort()
  }

  /**
   * Power loss: every unsynced write is kept, lost or torn as `choose` says (a fraction of it: 1, 0 or between; in units
   * of 512 bytes). Names are those that were synced; file handles are dead afterwards. `which`: only these files.
   */
  crash(choose: () => number, which: (path: string) => boolean = () => true): MemoryDisk {
    const after = new MemoryDisk()
    after.dirs = new Set(this.dirs)
    const survivors = new Map<Content, Content>()
    for (const [path, content] of this.durableNames) {
      if (!which(path)) continue
      let survivor = survivors.get(content)
      if (survivor === undefined) {
        let bytes: Buffer = Buffer.from(content.durable)
        for (const { position, data } of content.pending) {
          const kept = Math.min(data.length, Math.ceil((data.length * choose()) / 512) * 512)
          if (position + kept > bytes.length)
            bytes = Buffer.concat([bytes, Buffer.alloc(position + kept - bytes.length)])
          data.copy(bytes, position, 0, kept)
        }
        survivor = { bytes, durable: Buffer.from(bytes), pending: [] }
        survivors.set(content, survivor)
      }
      after.files.set(path, survivor)
      after.durableNames.set(path, survivor)
    }
    return after
  }

  async open(path: string, how: 'create' | 'write' | 'read'): Promise<DiskFile> {
    let content = this.files.get(path)
    if (how === 'create') {
      if (content !== undefined) throw fault('EEXIST')
      this.hook('create', path, 0)
      content = { bytes: Buffer.alloc(0), durable: Buffer.alloc(0), pending: [] }
      this.files.set(path, content)
    } else if (content === undefined) throw fault('ENOENT')
    const file = content
    return {
      write: async (buffers, position, pastCache = false) => {
        let data = Buffer.concat(buffers)
        if (pastCache) {
          // As whoever writes whole blocks does.
          const end = position + data.length
          const padding = Math.min(-end & 4095, Math.max(0, file.bytes.length - end))
          data = Buffer.concat([data, Buffer.alloc(padding)])
        }
        this.hook('write', path, data.length)
        await Promise.resolve()
        const end = position + data.length
        if (end > file.bytes.length) {
          if (this.used + end - file.bytes.length > this.capacity) throw fault('ENOSPC')
          file.bytes = extended(file.bytes, end)
        }
        data.copy(file.bytes, position)
        file.pending.push({ position, data })
      },
      read: async (target, position) => file.bytes.copy(target, 0, position),
      datasync: async () => {
        const covered = file.pending.length
        await Promise.resolve()
        this.hook('datasync', path, 0)
        this.syncs++
        if (this.lies) return
        const writes = file.pending.splice(0, covered)
        let { durable } = file
        for (const { position, data } of writes) {
          const end = position + data.length
          if (end > durable.length) durable = extended(durable, end)
          data.copy(durable, position)
        }
        file.durable = durable
      },
      size: async () => file.bytes.length,
      close: async () => {},
    }
  }

  async readFile(path: string): Promise<Uint8Array> {
    const content = this.files.get(path)
    if (content === undefined) throw fault('ENOENT')
    return Buffer.from(content.bytes)
  }

  async list(dir: string): Promise<string[]> {
    const names = new Set<string>()
    for (const path of [...this.files.keys(), ...this.dirs])
      if (path.startsWith(`${dir}/`)) names.add(path.slice(dir.length + 1).split('/')[0]!)
    return [...names]
  }

  async makeDir(dir: string): Promise<void> {
    for (let at = dir; !this.dirs.has(at) && at !== '/' && at !== '.'; at = dirname(at)) this.dirs.add(at)
  }

  async exists(path: string): Promise<boolean> {
    return this.files.has(path) || this.dirs.has(path)
  }

  async rename(from: string, to: string): Promise<void> {
    const file = this.files.get(from)
    if (file !== undefined) {
      this.files.delete(from)
      this.files.set(to, file)
      return
    }
    if (!this.dirs.has(from)) throw fault('ENOENT')
    for (const dir of [...this.dirs])
      if (dir === from || dir.startsWith(`${from}/`)) {
        this.dirs.delete(dir)
        this.dirs.add(to + dir.slice(from.length))
      }
    // A folder's renaming takes its synced names along; strictly the parent's sync makes it durable.
    for (const names of [this.files, this.durableNames])
      for (const [path, content] of [...names])
        if (path.startsWith(`${from}/`)) {
          names.delete(path)
          names.set(to + path.slice(from.length), content)
        }
  }

  async remove(path: string): Promise<void> {
    this.files.delete(path)
    for (const name of [...this.files.keys()]) if (name.startsWith(`${path}/`)) this.files.delete(name)
    for (const dir of [...this.dirs]) if (dir === path || dir.startsWith(`${path}/`)) this.dirs.delete(dir)
  }

  async syncDir(dir: string): Promise<void> {
    for (const path of [...this.durableNames.keys()])
      if (dirname(path) === dir && !this.files.has(path)) this.durableNames.delete(path)
    for (const [path, content] of this.files) if (dirname(path) === dir) this.durableNames.set(path, content)
  }
}
