/**
 * What the attach agent needs of the servers: connections to the safekeeper and the page server, the timeline found or
 * made, and the writer of its log, which finds the leading safekeeper by itself.
 */
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import type { Connection } from '../../protocol/connection.ts'
import { type Address, dial } from '../../protocol/dial.ts'
import { type Lsn, type TimelineId, toTimelineId, type WriterEpoch } from '../../protocol/ids.ts'
import { MessageType, Role, type TimelineStatus } from '../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { fencedError, invalidError, PalimpsestError } from '../shared/errors.ts'
import { silentLog } from '../shared/log.ts'
import { WalWriter } from '../shared/log-client.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import type { FileSink } from './file-capture.ts'

export interface ServerOptions {
  readonly connect: readonly Address[]
  readonly security?: ConnectionSecurity | undefined
  readonly signal?: AbortSignal | undefined
}

export interface Servers {
  readonly safekeeper: Connection
  readonly pageServer: Connection
  close(): void
}

export async function openServers(options: ServerOptions): Promise<Servers> {
  const dialOptions = { security: options.security, signal: options.signal }
  const safekeeper = await dial(options.connect, Role.SAFEKEEPER, dialOptions)
  try {
    const pageServer = await dial(options.connect, Role.PAGESERVER, dialOptions)
    return {
      safekeeper,
      pageServer,
      close() {
        safekeeper.close()
        pageServer.close()
      },
    }
  } catch (error) {
    safekeeper.close()
    throw error
  }
}

/** The timeline of that name or id on the page server; undefined if it has none. */
export async function findTimeline(
  pageServer: Connection,
  name: string,
): Promise<TimelineStatus | undefined> {
  const all = await listTimelines(pageServer)
  const summary = all.find(timeline => timeline.name === name || timeline.timeline === name)
  return summary && (await showTimeline(pageServer, summary.timeline))
}

export async function showTimeline(pageServer: Connection, timeline: TimelineId): Promise<TimelineStatus> {
  const { message } = await pageServer.request({ type: MessageType.TimelineShow, timeline, name: '' })
  return message
}

export interface NewTimeline {
  readonly name: string
  /** A random one unless told. */
  readonly timeline?: TimelineId | undefined
  readonly startLsn: Lsn
  readonly innodbPageSize: number
  readonly serverVersion: string
}

/**
 * Makes a timeline at the safekeeper first, then at the page server, which follows the former. If a first try died
 * between the two, the safekeeper's half is taken up again, with its id and where it begins.
 * @throws PalimpsestError `invalid` if it was to have another id than that
 */
export async function createTimeline(
  servers: Servers,
  wanted: NewTimeline,
): Promise<{ readonly timeline: TimelineId; readonly startLsn: Lsn }> {
  const replies = await servers.safekeeper.requestAll({ type: MessageType.WalList })
  const half = replies.flatMap(({ message }) => message.timelines).find(item => item.name === wanted.name)
  const timeline = half?.timeline ?? wanted.timeline ?? toTimelineId(randomBytes(16).toString('hex'))
  if (wanted.timeline !== undefined && timeline !== wanted.timeline)
    throw invalidError(
      `the safekeepers have a timeline named ${wanted.name} already, with id ${timeline}: an attempt to make it was cut off. Leave --id out, or give that one, to go on with it; or choose another name`,
    )
  const startLsn = half?.beginLsn ?? wanted.startLsn
  if (!half)
    await servers.safekeeper
      .request({
        type: MessageType.WalCreate,
        timeline,
        startLsn,
        name: wanted.name,
      })
      .catch(error => {
        throw wanted.timeline === undefined ? withoutRandomId(error, timeline, wanted.name) : error
      })
  await servers.pageServer.request({
    type: MessageType.TimelineCreate,
    timeline,
    startLsn,
    innodbPageSize: wanted.innodbPageSize,
    name: wanted.name,
    serverVersion: wanted.serverVersion,
  })
  return { timeline, startLsn }
}

/** A token that is limited to timelines does not know the id that chance gave: the refusal names none that helps. */
export function withoutRandomId(error: unknown, timeline: TimelineId, name: string): unknown {
  if (!(error instanceof PalimpsestError) || error.kind !== 'invalid') return error
  const { message } = error
  if (!message.includes(`write:${timeline}`)) return error
  return new PalimpsestError(
    'invalid',
    `the token may not write to a timeline ${name}, if there is one; to make it, give --id, with the ID of the token's scope write:ID ` +
      `(the server says: ${message.replaceAll(timeline, 'ID')})`,
    { cause: error },
  )
}

/** What this process is called as a writer. */
function writerName(): string {
  const host = hostname()
    .replace(/[^\x21-\x7e]/g, '?')
    .slice(0, 80)
  return `attach@${host}:${process.pid}`
}

/**
 * An agent that lost its connection may not have heard yet that another one has taken over: it does not take it back.
 * @param epoch of its last writer
 * @throws PalimpsestError `fenced` if the timeline has a newer writer that is another one
 */
export async function refuseSuccessor(
  { safekeeper }: Servers,
  timeline: TimelineId,
  epoch: WriterEpoch,
): Promise<void> {
  const { message } = await safekeeper.request({ type: MessageType.WalState, timeline })
  if (message.epoch > epoch && message.writer !== writerName())
    throw fencedError(
      `"${message.name}" has a newer writer, ${message.writer} (epoch ${message.epoch}): this agent stops`,
    )
}

/** Becomes the timeline's writer; whoever was it before is refused from now on. */
export function openWriter(
  options: ServerOptions,
  timeline: TimelineId,
  onHeldUp: (reason: string) => void,
): Promise<WalWriter> {
  return WalWriter.open({
    safekeepers: options.connect,
    timeline,
    name: writerName(),
    log: silentLog,
    dial: { security: options.security },
    signal: options.signal,
    onHeldUp,
  })
}

/**
 * Has the page server refuse the files of writers before this one, as the safekeepers refuse their redo.
 * @throws PalimpsestError `fenced` if there is a later one
 */
export async function claimFiles(
  pageServer: Connection,
  timeline: TimelineId,
  epoch: WriterEpoch,
): Promise<void> {
  try {
    await pageServer.request({ type: MessageType.FileEpoch, timeline, epoch })
  } catch (error) {
    // A page server of before this message refuses it, and takes files of everybody.
    if (!(error instanceof PalimpsestError) || error.kind !== 'invalid') throw error
  }
}

/** Where captured files go: to the page server. */
export function fileSink(pageServer: Connection, timeline: TimelineId): FileSink {
  return {
    putPiece: async (version, offset, piece) => {
      const { path, lsn, mode, mtimeMs, totalBytes } = version
      await pageServer.request(
        { type: MessageType.FilePut, timeline, path, lsn, mode, mtimeMs, totalBytes, offset },
        { bulk: piece },
      )
    },
    remove: async (path, lsn) => {
      await pageServer.request({ type: MessageType.FileDelete, timeline, path, lsn })
    },
  }
}
