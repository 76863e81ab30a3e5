/** The name under which safekeepers know this page server: made once, kept in its data directory. */
import { randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { corruptError } from '../shared/errors.ts'

const NODE_ID = /^pageserver-[0-9a-f]{16}$/

export async function loadNodeId(dataDir: string): Promise<string> {
  await mkdir(dataDir, { recursive: true })
  const path = join(dataDir, 'node-id')
  try {
    const text = (await readFile(path, 'utf8')).trim()
    if (NODE_ID.test(text)) return text
    throw corruptError(`${path} holds ${JSON.stringify(text.slice(0, 60))}, which is no id of a page server`)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
  const id = `pageserver-${randomBytes(8).toString('hex')}`
  await writeFile(path, `${id}\n`, { flag: 'wx' })
  return id
}
