// Tables that are renamed while a datadir is copied.
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { FIL_PAGE_SPACE_ID, read4 } from '../../../parser/page-format.ts'
import { RecordType } from '../../../parser/record-decoder.ts'
import type { Connection } from '../../../protocol/connection.ts'
import { toLsn, toTimelineId } from '../../../protocol/ids.ts'
import { MessageType } from '../../../protocol/messages.ts'
import { copySpaces } from '../../../server/attach/copy-spaces.ts'
import { PageImport } from '../../../server/attach/page-import.ts'
import { SpaceTracker } from '../../../server/attach/space-tracker.ts'
import { scanDatadir } from '../../../server/datadir/scan.ts'
import { fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

const START = toLsn(30_000)
const PAGES = 3

interface Copied {
  readonly names: Map<number, string>
  /** By tablespace: the ids in the headers of the pages that were sent for it. */
  readonly ids: Map<number, Set<number>>
}

/** @param onFirst is called when the first tablespace was announced; tells the tracker what the redo says */
async function copy(
  datadir: string,
  onFirst: (tracker: SpaceTracker) => void,
  onCaughtUp: (tracker: SpaceTracker) => void = () => {},
): Promise<Copied & { spaces: number[] }> {
  const copied: Copied = { names: new Map(), ids: new Map() }
  const tracker = new SpaceTracker()
  tracker.beginScans()
  const pageServer = {
    async request(message: { type: number; space: number; name: string }, options?: { bulk: Uint8Array[] }) {
      if (message.type === MessageType.ImportSpace) {
        copied.names.set(message.space, message.name)
        if (copied.names.size === 1) onFirst(tracker)
      }
      if (message.type === MessageType.ImportPages)
        for (const page of options!.bulk) {
          const ids = copied.ids.get(message.space) ?? new Set()
          copied.ids.set(message.space, ids.add(read4(page, FIL_PAGE_SPACE_ID)))
        }
      return { message: { session: 1 } }
    },
  } as unknown as Connection
  const session = await PageImport.begin({
    pageServer,
    timeline: toTimelineId('00'.repeat(16)),
    kind: 'full',
    startLsn: START,
    live: true,
  })
  const spaces = await copySpaces(await scanDatadir(datadir, { live: true }), {
    datadir,
    live: true,
    session,
    startLsn: START,
    tracker,
    caughtUp: async () => onCaughtUp(tracker),
    signal: new AbortController().signal,
  })
  await session.drained()
  return { ...copied, spaces }
}

const table = (space: number) => fakeSpace({ space, pages: PAGES })

t.test('every tablespace is copied as itself, under whatever name', async t => {
  const datadir = fakeDatadir(t.testdir(), {
    'shop/y.ibd': table(10),
    'shop/z.ibd': table(20),
    'shop/r.ibd': table(30),
    'shop/stays.ibd': table(40),
  })
  mkdirSync(join(datadir, 'aa'))
  const { ids, names, spaces } = await copy(datadir, () => {
    renameSync(join(datadir, 'shop/y.ibd'), join(datadir, 'shop/y_old.ibd'))
    renameSync(join(datadir, 'shop/z.ibd'), join(datadir, 'shop/y.ibd'))
    renameSync(join(datadir, 'shop/r.ibd'), join(datadir, 'aa/r.ibd'))
  })
  for (const space of [0, 10, 20, 30, 40]) t.strictSame([...ids.get(space)!], [space])
  t.equal(names.get(10), 'shop/y_old.ibd')
  t.equal(names.get(20), 'shop/y.ibd')
  t.equal(names.get(30), 'aa/r.ibd')
  t.strictSame(
    spaces.sort((a, b) => a - b),
    [0, 10, 20, 30, 40],
  )
})

/** A mini-transaction of one file record, for the tracker. */
function tell(tracker: SpaceTracker, type: number, space: number, name: string): void {
  const payload = [space, 0, ...Buffer.from(name)]
  const bytes = Uint8Array.from([type, payload.length - 14, ...payload, 1, 0, 0, 0, 0])
  tracker.inspect(bytes, START, [0, bytes.length])
}

t.test('what was dropped is not waited for', async t => {
  const datadir = fakeDatadir(t.testdir(), { 'shop/gone.ibd': table(10), 'shop/stays.ibd': table(40) })
  const { ids } = await copy(datadir, tracker => {
    rmSync(join(datadir, 'shop/gone.ibd'))
    tell(tracker, RecordType.FILE_DELETE, 10, './shop/gone.ibd')
  })
  t.strictSame([...ids.keys()], [0, 40])
})

t.test('what a scan met under neither name is found as the redo says that it was renamed', async t => {
  const datadir = fakeDatadir(t.testdir(), { 'shop/a.ibd': table(10) })
  const { ids } = await copy(datadir, tracker => {
    tell(tracker, RecordType.FILE_RENAME, 50, './shop/before.ibd\0./aa/after.ibd')
    // It comes to light after the second look.
    setTimeout(() => fakeDatadir(datadir, { 'aa/after.ibd': table(50) }), 60)
  })
  t.strictSame([...ids.get(50)!], [50])
})

t.test('what comes and goes between a look and the redo is not waited for', async t => {
  const datadir = fakeDatadir(t.testdir(), { 'shop/a.ibd': table(10) })
  const { ids } = await copy(
    datadir,
    tracker => {
      fakeDatadir(datadir, { 'shop/short.ibd': table(60) })
      tell(tracker, RecordType.FILE_CREATE, 60, './shop/short.ibd')
    },
    tracker => {
      if (!existsSync(join(datadir, 'shop/short.ibd'))) return
      rmSync(join(datadir, 'shop/short.ibd'))
      tell(tracker, RecordType.FILE_DELETE, 60, './shop/short.ibd')
    },
  )
  t.notOk(ids.has(60))
})
