/**
 * From a spool file of imported pages to an image layer. Runs in a worker.
 *
 * A spool is nothing but pages, one after the other; what they are stands in the task. Their CRCs were made by the sender,
 * and are verified here, once. Pages of page_compressed tables are stored uncompressed, as the buffer pool has them: redo
 * applies to these.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { decompressPage } from '../../parser/page-compression.ts'
import { pageLsn } from '../../parser/page-format.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { formatPageId, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import { corruptError, invalidError } from '../shared/errors.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import { ImageLayerWriter } from './image-layer.ts'
import type { LayerSummary } from './layer-file-writer.ts'

/** Numbers per page in `ImportSpoolInput.pages`: space, page, FSP_SPACE_FLAGS, CRC-32C. */
const SPOOL_PAGE_WORDS = 4

export interface ImportSpoolInput {
  readonly spool: string
  readonly pages: Uint32Array
  readonly path: string
  readonly timeline: TimelineId
  readonly generation: number
  readonly lsn: Lsn
  readonly events: readonly CatalogueEvent[]
}

/** The layer's file is complete when this returns. The spool stays. */
export function layerFromSpool(input: ImportSpoolInput): LayerSummary {
  const { pages, lsn, timeline, generation } = input
  const fd = pages.length === 0 ? -1 : openSync(input.spool, 'r')
  const writer = new ImageLayerWriter(input.path, { lsn, timeline, generation })
  const buffer = Buffer.alloc(65536)
  let at = 0
  try {
    for (let i = 0; i < pages.length; i += SPOOL_PAGE_WORDS) {
      const id = { space: pages[i]!, page: pages[i + 1]! }
      const format = parseSpaceFlags(pages[i + 2]!)
      const size = format.physicalSize
      const stored = buffer.subarray(0, size)
      if (readSync(fd, stored, 0, size, at) !== size)
        throw corruptError(`${input.spool} ends within page ${formatPageId(id)}`)
      at += size
      if (crc32c(stored, 0, size) !== pages[i + 3])
        throw corruptError(
          `page ${formatPageId(id)} of the import does not match the CRC-32C that its sender made`,
        )
      let plain: Uint8Array
      try {
        plain = decompressPage(stored, format, `tablespace ${id.space}`)
      } catch (error) {
        throw invalidError(`page ${formatPageId(id)} of the import: ${(error as Error).message}`)
      }
      const bytes = Buffer.isBuffer(plain) ? plain : Buffer.from(plain.buffer, plain.byteOffset, plain.length)
      writer.addPage(id.space, id.page, bytes, 0, bytes.length, pageLsn(bytes))
    }
    return writer.finish({ catalogueEvents: input.events })
  } catch (error) {
    writer.abort()
    throw error
  } finally {
    if (fd >= 0) closeSync(fd)
  }
}
