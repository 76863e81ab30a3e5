/** What reconcile.ts needs of the page server, and its patience with what has not arrived yet. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { MessageType, type TimelineStatus } from '../../protocol/messages.ts'
import { listFiles, listSpaces } from './at-lsn.ts'
import { readDictionary } from './dictionary/dictionary.ts'
import { type FileContent, type Reconciled, reconcile } from './reconcile.ts'

/** The agent takes files some milliseconds after their change, and looks at all of them every five seconds. */
const PATIENCE_MS = 6000
const RETRY_MS = 500
/** A timeline whose newest redo is older than this has all its files. */
const RECENT_MS = 15_000
/** How far back the first look for a former name goes, in bytes of redo. */
const FORMER_STEP_MIN = 1024

/** @throws PalimpsestError */
export async function reconcileExport(
  pageServer: Connection,
  status: TimelineStatus,
  lsn: Lsn,
): Promise<Reconciled> {
  const { timeline, readableFromLsn } = status.summary
  const dictionary = await readDictionary({ pageServer, timeline, lsn })
  const formerNames = new FormerNames(pageServer, status, lsn)
  const deadline = performance.now() + PATIENCE_MS
  const recent = Date.now() - (await timeOf(pageServer, status, lsn)) < RECENT_MS
  for (;;) {
    const result = await reconcile({
      lsn,
      dictionary,
      files: await listFiles(pageServer, status, lsn),
      async read(item) {
        const pieces: Uint8Array[] = []
        for await (const { bulk } of pageServer.stream({
          type: MessageType.FileGet,
          timeline,
          lsn,
          path: item.path,
        }))
          pieces.push(Uint8Array.from(bulk))
        return Buffer.concat(pieces)
      },
      async versions(directory, suffix, fromLsn, toLsn) {
        const type = MessageType.FileVersions
        const found: FileContent[] = []
        for await (const { message, bulk } of pageServer.stream({
          type,
          timeline,
          fromLsn,
          toLsn,
          directory,
          suffix,
        }))
          if (message.path !== '')
            found.push({
              path: message.path,
              lsn: message.lsn,
              mode: message.mode,
              mtimeMs: message.mtimeMs,
              content: Buffer.from(bulk),
            })
        return found
      },
      formerName: space => formerNames.of(space, readableFromLsn),
    })
    if (result.unmatched.length === 0) return result
    if (!recent || performance.now() > deadline)
      return {
        ...result,
        warnings: [
          ...result.warnings,
          ...result.unmatched.map(
            name =>
              `no table definition that was captured fits ${name} as InnoDB has it at LSN ${lsn}; the table may not open. Some milliseconds before or after it will`,
          ),
        ],
      }
    await sleep(RETRY_MS)
  }
}

async function timeOf(pageServer: Connection, status: TimelineStatus, lsn: Lsn): Promise<number> {
  const { timeline } = status.summary
  try {
    const { message } = await pageServer.request({ type: MessageType.TimeAtLsn, timeline, lsn })
    return message.timeUs / 1000
  } catch {
    return Date.now()
  }
}

/** Finds what a tablespace was called before, by asking for the tablespaces of earlier and earlier LSNs. */
class FormerNames {
  readonly #pageServer: Connection
  readonly #status: TimelineStatus
  readonly #lsn: Lsn
  readonly #names = new Map<number, Map<number, string>>()

  constructor(pageServer: Connection, status: TimelineStatus, lsn: Lsn) {
    this.#pageServer = pageServer
    this.#status = status
    this.#lsn = lsn
  }

  async of(space: number, earliest: Lsn): Promise<string | undefined> {
    const now = await this.#at(this.#lsn, space)
    let same: number = this.#lsn
    let other: number | undefined
    for (let step = FORMER_STEP_MIN; other === undefined; step *= 4) {
      const at = Math.max(earliest, this.#lsn - step)
      if ((await this.#at(at, space)) !== now) other = at
      else if (at === earliest) return undefined
      else same = at
    }
    while (same - other > 1) {
      const middle = Math.floor((same + other) / 2)
      if ((await this.#at(middle, space)) === now) same = middle
      else other = middle
    }
    return (await this.#at(other, space))
      ?.replace(/\.ibd$/, '')
      .split('/')
      .slice(-2)
      .join('/')
  }

  async #at(lsn: number, space: number): Promise<string | undefined> {
    let names = this.#names.get(lsn)
    if (!names) {
      const spaces = await listSpaces(this.#pageServer, this.#status, lsn as Lsn)
      names = new Map(spaces.map(item => [item.space, item.name]))
      this.#names.set(lsn, names)
    }
    return names.get(space)
  }
}
