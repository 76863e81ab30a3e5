/**
 * The name under which safekeepers know who makes the redo durable: they keep redo until that one has it. It belongs to the
 * store, not to the machine: a page server that has lost its own disk, or one that takes over on another machine, goes on
 * where the last one was, and no name that nobody answers to any more holds the log for ever. Two page servers on one store
 * have the same name for a while; the fenced one's word is no more than the other has made durable too.
 */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { corruptError, retryError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'

const KEY = 'pageserver-id'
const NODE_ID = /^pageserver-[0-9a-f]{16}$/

/** Made by whoever opens the store first. */
export async function loadNodeId(dataDir: string, store: ObjectStore): Promise<string> {
  const known = await store.get(KEY)
  if (known !== undefined) return checkNodeId(known, `${KEY} in ${store.description}`)
  const id = (await idOfDirectory(dataDir)) ?? `pageserver-${randomBytes(8).toString('hex')}`
  if (await store.putIfAbsent(KEY, Buffer.from(`${id}\n`))) return id
  const winner = await store.get(KEY)
  if (winner === undefined) throw retryError(`${KEY} in ${store.description} is being removed; start again`)
  return checkNodeId(winner, `${KEY} in ${store.description}`)
}

/** Before the name was kept in the store, it was kept here. */
async function idOfDirectory(dataDir: string): Promise<string | undefined> {
  const path = join(dataDir, 'node-id')
  try {
    return checkNodeId(await readFile(path), path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function checkNodeId(bytes: Buffer, where: string): string {
  const id = bytes.toString('utf8').trim()
  if (NODE_ID.test(id)) return id
  throw corruptError(`${where} holds ${JSON.stringify(id.slice(0, 60))}, which is no id of a page server`)
}
