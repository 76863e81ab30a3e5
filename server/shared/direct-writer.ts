/**
 * Writes past the kernel's file cache (O_DIRECT), for megabytes that nobody is expected to read soon. Through the cache each
 * page of a file that grows is memory that was not in use before: the kernel has to find it, to copy into it, to write it back and in the
 * end to evict something else; a virtual machine may even have to ask its host for it first, at five times the price of the copy.
 *
 * The device wants whole blocks from aligned memory, so what is to be written is put together in memory of ours: one copy, as
 * through the cache, but always into the same few megabytes. The file's last block is kept, since the next write begins within it.
 *
 * Kernels keep both ways coherent: a direct write sees what was written through the cache before, and readers through the
 * cache see it afterwards. Never two writes of one file at once.
 */
import { close, constants, fstat, open, write } from 'node:fs'
import { readFully } from './read-fully.ts'

/** A multiple of all devices' blocks, and of pages. */
export const DIRECT_BLOCK_BYTES = 4096
/** Memory of one write; more is written in several. */
const MEMORY_BYTES = 4 * 1024 * 1024
const WASM_PAGE_BYTES = 65536
const KEPT_MAX = 2

/** Node.js has it; the types of it come with those of browsers only. */
declare const WebAssembly: {
  readonly Memory: new (pages: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer }
}

/** Linux has it; others write through the cache. */
const O_DIRECT: number | undefined = constants.O_DIRECT

/** What is not in use at present. */
const kept: Buffer[] = []

/** Aligned to pages, as memory for WebAssembly is and other buffers are not; undefined if there is none to be had. */
function takeMemory(): Buffer | undefined {
  const memory = kept.pop()
  if (memory !== undefined) return memory
  try {
    const pages = MEMORY_BYTES / WASM_PAGE_BYTES
    return Buffer.from(new WebAssembly.Memory({ initial: pages, maximum: pages }).buffer)
  } catch {
    return undefined
  }
}

function giveMemory(memory: Buffer): void {
  if (kept.length < KEPT_MAX) kept.push(memory)
}

/** One file, of which `fd` is open for reading and writing through the cache, and whose length does not change. */
export class DirectWriter {
  readonly #fd: number
  /** undefined: not opened yet; then whether it could be. */
  #opening: Promise<{ readonly fd: number; readonly fileBytes: number } | undefined> | undefined
  /** The beginning of the block that the last write ended in: [0, tailEnd mod 4096). */
  readonly #tail = Buffer.allocUnsafeSlow(DIRECT_BLOCK_BYTES)
  #tailEnd = -1

  constructor(fd: number) {
    this.#fd = fd
  }

  /** The file was written through the cache. */
  forget(): void {
    this.#tailEnd = -1
  }

  /**
   * Writes all of the buffers from `position`, and zeros behind them up to the end of the block. False if that cannot be done here: then
   * the same is to be written through the cache. Throws errors of the operating system.
   */
  async write(buffers: readonly Uint8Array[], position: number): Promise<boolean> {
    this.#opening ??= this.#open()
    const file = await this.#opening
    if (file === undefined) return false
    let total = 0
    for (const buffer of buffers) total += buffer.length
    if (blocksUp(position + total) > file.fileBytes) return false
    const memory = takeMemory()
    if (memory === undefined) return false
    try {
      await this.#writeBlocks(file.fd, memory, buffers, position)
      return true
    } catch (error) {
      // A file system that took the flag and then refuses: what was written so far is written again.
      if (!isUnsupported(error)) throw error
      this.forget()
      await this.close()
      this.#opening = Promise.resolve(undefined)
      return false
    } finally {
      giveMemory(memory)
    }
  }

  async #writeBlocks(
    fd: number,
    memory: Buffer,
    buffers: readonly Uint8Array[],
    position: number,
  ): Promise<void> {
    let at = position - (position % DIRECT_BLOCK_BYTES)
    let filled = position - at
    if (filled > 0) {
      if (this.#tailEnd === position) this.#tail.copy(memory, 0, 0, filled)
      else {
        const got = await readFully(this.#fd, memory.subarray(0, filled), at)
        // The file ends there.
        memory.fill(0, got, filled)
      }
    }
    this.#tailEnd = -1
    for (const buffer of buffers)
      for (let from = 0; from < buffer.length; ) {
        const bytes = Math.min(buffer.length - from, memory.length - filled)
        memory.set(bytes === buffer.length ? buffer : buffer.subarray(from, from + bytes), filled)
        from += bytes
        filled += bytes
        if (filled < memory.length) continue
        await writeAll(fd, memory, filled, at)
        at += filled
        filled = 0
      }
    const end = blocksUp(filled)
    memory.fill(0, filled, end)
    if (end > 0) await writeAll(fd, memory, end, at)
    memory.copy(this.#tail, 0, filled - (filled % DIRECT_BLOCK_BYTES), filled)
    this.#tailEnd = at + filled
  }

  #open(): Promise<{ readonly fd: number; readonly fileBytes: number } | undefined> {
    if (O_DIRECT === undefined) return Promise.resolve(undefined)
    return new Promise(resolve => {
      fstat(this.#fd, (error, { size: fileBytes } = { size: 0 } as never) => {
        // The same file, whatever it is called by now.
        if (error !== null) resolve(undefined)
        else
          open(`/proc/self/fd/${this.#fd}`, constants.O_WRONLY | O_DIRECT, (problem, fd) =>
            resolve(problem === null ? { fd, fileBytes } : undefined),
          )
      })
    })
  }

  async close(): Promise<void> {
    const file = await this.#opening
    this.#opening = undefined
    if (file === undefined) return
    await new Promise<void>((resolve, reject) => {
      close(file.fd, error => (error ? reject(error) : resolve()))
    })
  }
}

function blocksUp(bytes: number): number {
  return Math.ceil(bytes / DIRECT_BLOCK_BYTES) * DIRECT_BLOCK_BYTES
}

function isUnsupported(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'EINVAL' || code === 'EOPNOTSUPP' || code === 'ENOTSUP'
}

/** `memory[0, bytes)`, whole blocks. */
async function writeAll(fd: number, memory: Buffer, bytes: number, position: number): Promise<void> {
  for (let done = 0; done < bytes; ) {
    const written = await new Promise<number>((resolve, reject) => {
      write(fd, memory, done, bytes - done, position + done, (error, n) =>
        error === null ? resolve(n) : reject(error),
      )
    })
    // What was written of a block in part is written again with all of it.
    const whole = written - (written % DIRECT_BLOCK_BYTES)
    if (whole === 0) throw Object.assign(new Error('a direct write wrote nothing'), { code: 'EINVAL' })
    done += whole
  }
}
