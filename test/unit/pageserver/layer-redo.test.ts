import { join } from 'node:path'
import t from 'tap'
import { ChunkIndexer } from '../../../parser/chunk-index.ts'
import { addLsn, type Lsn, toLsn, toTimelineId } from '../../../protocol/ids.ts'
import type { CatalogueEvent } from '../../../server/pageserver/catalogue-codec.ts'
import { Catalogue } from '../../../server/pageserver/core/catalogue.ts'
import { DeltaLayerWriter } from '../../../server/pageserver/delta-layer.ts'
import { LayerReader } from '../../../server/pageserver/layer-reader.ts'
import { ChunkIndexView } from '../../support/chunk-index-view.ts'
import { loadVariety, PAGE_SIZE_NAMES } from '../../support/redo-fixtures.ts'

const BEGIN = toLsn(6_000_000_000)

for (const size of PAGE_SIZE_NAMES)
  t.test(
    `recorded redo of all shapes, ${size}: a layer has every entry byte for byte, and every event`,
    async t => {
      const log = loadVariety(size)
      const indexer = new ChunkIndexer()
      const found = indexer.index(log, 0, log.length, BEGIN)
      const view = new ChunkIndexView(indexer)
      const events = found.events.filter(event => event.kind !== 'checkpoint') as CatalogueEvent[]
      const path = join(t.testdir(), 'layer')
      const writer = new DeltaLayerWriter(path, {
        timeline: toTimelineId('00'.repeat(16)),
        generation: 1,
        lsnStart: BEGIN,
        lsnEnd: addLsn(BEGIN, log.length),
      })
      const bytes = Buffer.from(log.buffer, log.byteOffset, log.length)
      for (let p = 0; p < view.pageCount; p++) {
        writer.beginPage(view.pageSpace[p]!, view.pageNumber[p]!)
        view.forEachEntry(p, (offset, length, lsn, flags) =>
          writer.addEntry(BEGIN + lsn, flags, bytes, offset, length),
        )
      }
      const summary = writer.finish({ catalogueEvents: events })
      t.equal(summary.entries, view.entryCount)
      t.equal(summary.pages, view.pageCount)

      const reader = LayerReader.open(path)
      t.teardown(() => reader.close())
      let wrong = 0
      for (let p = 0; p < view.pageCount; p++) {
        const handle = reader.findPage(view.pageSpace[p]!, view.pageNumber[p]!)
        const cursor = reader.cursor(handle, BEGIN, summary.lsnEnd)
        let lastInit = 0
        view.forEachEntry(p, (offset, length, lsn, flags) => {
          const same =
            cursor.next() &&
            cursor.lsn === BEGIN + lsn &&
            cursor.flags === flags &&
            bytes.subarray(offset, offset + length).equals(cursor.buf.subarray(cursor.start, cursor.end))
          if (!same) wrong++
          if ((flags & 1) !== 0) lastInit = BEGIN + lsn
        })
        if (cursor.next() || reader.initLsn(handle) !== lastInit) wrong++
      }
      t.equal(wrong, 0)
      t.same(reader.catalogueEvents(), events)

      const direct = new Catalogue()
      direct.applyAll(events)
      const end = summary.lsnEnd as Lsn
      t.same(Catalogue.decode(direct.encode(end)).list(end), direct.list(end))
    },
  )
