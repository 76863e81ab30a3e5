/** What `attach`, `import`, `export` and `verify` share: between a datadir and a timeline, with progress on the screen. */
import { Option } from 'commander'
import type { Connection } from '../../protocol/connection.ts'
import { Role, type TimelineStatus } from '../../protocol/messages.ts'
import type { AttachResult } from '../attach/attach.ts'
import { Progress, progressMode } from '../shared/progress.ts'
import { type ClientOptions, findTimeline, timelineIdArgument, withConnection } from './common.ts'

/** A token for a timeline names its id, so one for a timeline that is yet to be made needs to choose it. */
export function newTimelineOption(): Option {
  return new Option(
    '--id <ID>',
    'id of a timeline that is made, 32 hexadecimal digits (default: the one that the token is limited to, else random)',
  ).argParser(timelineIdArgument)
}

export function sameServerOption(): Option {
  return new Option(
    '--same-server',
    "the timeline's server has other Aria logs than before: go on with this datadir all the same",
  ).default(false)
}

/** For who interrupts an import. */
export function importLeft(timeline: string): string {
  return `the import into timeline ${timeline} is not complete, and what it had to bring cannot be read yet; run the same command again to go on`
}

export async function withProgress<T>(json: boolean, work: (progress: Progress) => Promise<T>): Promise<T> {
  const progress = new Progress({ mode: progressMode(json) })
  try {
    return await work(progress)
  } finally {
    progress.close()
  }
}

export interface OpenTimeline {
  readonly pageServer: Connection
  readonly status: TimelineStatus
  readonly progress: Progress
}

/** Looks up the timeline of --timeline at the page server, for as long as `work` takes. */
export function withTimeline<T>(
  options: ClientOptions & { readonly timeline: string },
  signal: AbortSignal,
  work: (open: OpenTimeline) => Promise<T>,
): Promise<T> {
  return withConnection(
    options,
    Role.PAGESERVER,
    async pageServer => {
      const status = await findTimeline(pageServer, options.timeline)
      return await withProgress(options.json, progress => work({ pageServer, status, progress }))
    },
    signal,
  )
}

export function printAttachResult(result: AttachResult, json: boolean): void {
  if (json) {
    process.stdout.write(`${JSON.stringify({ event: 'done', ...result })}\n`)
    return
  }
  console.log(
    `timeline ${result.name} (${result.timeline}) holds everything up to LSN ${result.endLsn}; readable from LSN ${result.readableFromLsn}`,
  )
}
