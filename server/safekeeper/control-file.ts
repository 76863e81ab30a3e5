/**
 * What a timeline's log keeper must remember beside the redo: the writer epoch and the consumers. A text file `control`
 * of two lines, JSON and its CRC-32C in hexadecimal, replaced as a whole: written beside, synced, renamed, folder
 * synced. A reader sees the old one or the new one.
 */
import { dirname } from 'node:path'
import { z } from 'zod'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { corruptError } from '../shared/errors.ts'
import type { Disk } from '../shared/seams.ts'

export const CONTROL_NAME = 'control'
const VERSION = 1

const lsnSchema = z
  .int()
  .min(0)
  .transform(value => value as Lsn)

const schema = z.object({
  version: z.literal(VERSION),
  timeline: z
    .string()
    .regex(/^[0-9a-f]{32}$/)
    .transform(value => value as TimelineId),
  name: z.string(),
  startLsn: lsnSchema,
  /** Of the newest writer; 0 before the first. */
  epoch: z
    .int()
    .min(0)
    .transform(value => value as WriterEpoch),
  writer: z.string(),
  /** Below which each consumer needs nothing. */
  consumers: z.record(z.string(), lsnSchema),
  /** The log is known to reach at least here: recovery that finds less has found damage. */
  durableLsn: lsnSchema,
})

export type ControlState = Readonly<z.output<typeof schema>>

export function newControlState(timeline: TimelineId, name: string, startLsn: Lsn): ControlState {
  return {
    version: VERSION,
    timeline,
    name,
    startLsn,
    epoch: 0 as WriterEpoch,
    writer: '',
    consumers: {},
    durableLsn: startLsn,
  }
}

function checksum(line: string): string {
  const bytes = Buffer.from(line)
  return crc32c(bytes, 0, bytes.length).toString(16).padStart(8, '0')
}

/** Durable when it resolves. If it rejects, the old state or the new one is there. */
export async function saveControl(disk: Disk, path: string, state: ControlState): Promise<void> {
  const temporary = `${path}.tmp`
  await disk.remove(temporary)
  const line = JSON.stringify(state)
  const file = await disk.open(temporary, 'create')
  try {
    await file.write([Buffer.from(`${line}\n${checksum(line)}\n`)], 0)
    await file.datasync()
  } finally {
    await file.close()
  }
  await disk.rename(temporary, path)
  await disk.syncDir(dirname(path))
}

/** Throws an error of kind corrupt that names the file. */
export async function loadControl(disk: Disk, path: string): Promise<ControlState> {
  const fail = (why: string, cause?: unknown): never => {
    throw corruptError(
      `control file ${path}: ${why}; it holds the writer epoch, so it must be restored from a copy`,
      undefined,
      cause,
    )
  }
  const text = await disk.readFile(path).then(
    bytes => Buffer.from(bytes).toString('utf8'),
    error => fail(`cannot be read (${(error as NodeJS.ErrnoException).code})`, error),
  )
  const [line = '', crc = ''] = text.split('\n')
  if (checksum(line) !== crc) fail('wrong CRC-32C')
  const parsed = schema.safeParse(JSON.parse(line))
  return parsed.success ? parsed.data : fail(z.prettifyError(parsed.error))
}
