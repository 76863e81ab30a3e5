/**
 * `state`: what the names of the log's files do not say. Two lines: JSON, and its CRC-32C in hexadecimal. Replaced as a whole
 * (written beside, synced, renamed, folder synced), so that it is the one atomic step of a cut, a reset and a trim.
 */
import { join } from 'node:path'
import { z } from 'zod'
import { crc32c } from '../../../protocol/crc32c.ts'
import { corruptError } from '../../shared/errors.ts'
import type { Disk } from '../../shared/seams.ts'
import type { EntryId } from '../core/types.ts'

export const STATE_NAME = 'state'
const VERSION = 2

const whole = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const schema = z.strictObject({
  version: z.literal(VERSION),
  base: z.strictObject({ index: whole, term: whole }),
  generation: whole.max(0xffffffff),
  cutAfter: whole,
  baseGeneration: whole.max(0xffffffff),
  flushed: whole,
  voids: z.array(whole),
})

export interface LogState {
  /** The last entry below the log's beginning. */
  readonly base: EntryId
  /** Of what is written now. Entries above `cutAfter` with another generation are not of this log. */
  readonly generation: number
  readonly cutAfter: number
  /** Files of an older generation are void. */
  readonly baseGeneration: number
  /** The log reaches at least here. */
  readonly flushed: number
  /** Committed entries of raw segments that changed nothing. Ascending. */
  readonly voids: readonly number[]
}

/** Throws kind corrupt, with the path, if it is not what was written. */
export async function loadState(disk: Disk, dir: string): Promise<LogState> {
  const path = join(dir, STATE_NAME)
  const fail = (why: string): never => {
    throw corruptError(
      `log state ${path}: ${why}; give this node an empty data folder, so that the cell replaces it, or restore the folder`,
    )
  }
  const bytes = Buffer.from(await disk.readFile(path))
  const lineEnd = bytes.indexOf('\n')
  const json = bytes.subarray(0, Math.max(0, lineEnd))
  const crc = crc32c(json, 0, json.length).toString(16).padStart(8, '0')
  if (lineEnd < 0 || bytes.toString('latin1', lineEnd + 1) !== `${crc}\n`) fail('wrong CRC-32C')
  let value: unknown
  try {
    value = JSON.parse(json.toString())
  } catch (error) {
    fail((error as Error).message)
  }
  const version = (value as { version?: unknown } | null)?.version
  if (version !== VERSION) fail(`format version ${version}, this release knows ${VERSION}`)
  const parsed = schema.safeParse(value)
  if (!parsed.success) fail(z.prettifyError(parsed.error))
  const { version: _, ...state } = parsed.data as z.infer<typeof schema>
  return state as unknown as LogState
}

export async function saveState(disk: Disk, dir: string, state: LogState): Promise<void> {
  const path = join(dir, STATE_NAME)
  const temporary = `${path}.tmp`
  const json = Buffer.from(JSON.stringify({ version: VERSION, ...state }))
  const crc = crc32c(json, 0, json.length).toString(16).padStart(8, '0')
  await disk.remove(temporary)
  const file = await disk.open(temporary, 'create')
  try {
    await file.write([json, Buffer.from(`\n${crc}\n`)], 0)
    await file.datasync()
  } catch (error) {
    await file.close()
    await disk.remove(temporary)
    throw error
  }
  await file.close()
  await disk.rename(temporary, path)
  await disk.syncDir(dir)
}
