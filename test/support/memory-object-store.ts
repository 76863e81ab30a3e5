/** An object store in memory for tests: the same contract, and failures on demand. */
import { existsSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { internalError } from '../../server/shared/errors.ts'
import {
  checkObjectKey,
  checkObjectPrefix,
  type ObjectInfo,
  type ObjectStore,
} from '../../server/shared/object-store.ts'

export type StoreOperation = 'put' | 'delete' | 'get' | 'list'

export class MemoryObjectStore implements ObjectStore {
  readonly description = 'memory'
  readonly objects: Map<string, Buffer>
  /** Called before and after each change, and before each look; what it throws is what the caller gets. */
  fault: (when: 'before' | 'after', operation: StoreOperation, key: string) => void = () => {}
  /** Called before each put is carried out: what it returns is waited for. */
  slow: (key: string) => Promise<void> | undefined = () => undefined

  /** Two stores with the same objects are two clients of one service. */
  constructor(objects: Map<string, Buffer> = new Map()) {
    this.objects = objects
  }

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean> {
    checkObjectKey(key)
    this.fault('before', 'put', key)
    const later = this.slow(key)
    if (later !== undefined) await later
    const created = !this.objects.has(key)
    if (created) this.objects.set(key, Buffer.from(bytes))
    this.fault('after', 'put', key)
    return created
  }

  async putFile(key: string, localPath: string): Promise<boolean> {
    if (!existsSync(localPath)) throw internalError(`${localPath} does not exist`)
    const created = await this.putIfAbsent(key, readFileSync(localPath))
    if (created) unlinkSync(localPath)
    return created
  }

  async getFile(key: string, localPath: string): Promise<number | undefined> {
    const bytes = await this.get(key)
    if (bytes !== undefined) writeFileSync(localPath, bytes, { flag: 'wx' })
    return bytes?.length
  }

  async get(key: string): Promise<Buffer | undefined> {
    checkObjectKey(key)
    this.fault('before', 'get', key)
    const found = this.objects.get(key)
    return found && Buffer.from(found)
  }

  async getRange(key: string, offset: number, length: number): Promise<Buffer | undefined> {
    return (await this.get(key))?.subarray(offset, offset + length)
  }

  async head(key: string): Promise<number | undefined> {
    checkObjectKey(key)
    this.fault('before', 'get', key)
    return this.objects.get(key)?.length
  }

  async list(prefix: string): Promise<ObjectInfo[]> {
    checkObjectPrefix(prefix)
    this.fault('before', 'list', prefix)
    return [...this.objects]
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, bytes]) => ({ key, bytes: bytes.length }))
      .sort((a, b) => (a.key < b.key ? -1 : 1))
  }

  async delete(key: string): Promise<void> {
    checkObjectKey(key)
    this.fault('before', 'delete', key)
    this.objects.delete(key)
    this.fault('after', 'delete', key)
  }

  localPath(): undefined {
    return undefined
  }

  close(): void {}
}
