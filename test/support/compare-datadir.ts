/**
 * Compares pages that were computed with the files of a cleanly shut down datadir, byte for byte, leaving out only what
 * the redo log does not define: free pages, the doublewrite area, the flush LSN in page 0 of ibdata1, and for
 * page_compressed pages the compressed form (what it stands for is compared).
 */
import { readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { doublewriteAreas, ExtentMap } from '../../parser/extent-map.ts'
import { decompressPage, isPageCompressed } from '../../parser/page-compression.ts'
import {
  FIL_PAGE_FILE_FLUSH_LSN,
  FIL_PAGE_SPACE_ID,
  FSP_SPACE_ID,
  isZeroPage,
  read4,
  stampChecksum,
  TRX_SYS_PAGE_NO,
  verifyPage,
} from '../../parser/page-format.ts'
import { readSpaceFormat } from '../../parser/space-flags.ts'
import { tablespaceFiles } from './naive-replay.ts'

export interface Comparison {
  files: number
  compared: number
  /** Pages left out, by reason. */
  free: number
  doublewrite: number
  /** "file:page: first differing offset", at most the first 20. */
  differences: string[]
  differing: number
}

/** The page as it should be written (checksum stamped), or undefined/zeros where it should not exist. */
export type ExpectedPage = (space: number, pageNo: number, name: string) => Uint8Array | undefined

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i
  return -1
}

/** Compares every tablespace file below `datadir`; a file that `expected` knows nothing of counts as differing. */
export function compareWithDatadir(datadir: string, expected: ExpectedPage): Comparison {
  const result: Comparison = { files: 0, compared: 0, free: 0, doublewrite: 0, differences: [], differing: 0 }
  for (const path of tablespaceFiles(datadir)) {
    const name = relative(datadir, path)
    const content = readFileSync(path)
    const format = readSpaceFormat(content)
    const space = read4(content, FSP_SPACE_ID)
    const size = format.physicalSize
    const inFile = (pageNo: number): Uint8Array | undefined => {
      const page = content.subarray(pageNo * size, (pageNo + 1) * size)
      return page.length === size ? page : undefined
    }
    const extents = new ExtentMap(format, pageNo => {
      const page = inFile(pageNo)
      return page && isPageCompressed(page, format) ? decompressPage(page, format, name) : page
    })
    const doublewrite = space === 0 ? doublewriteAreas(inFile(TRX_SYS_PAGE_NO)!, format) : []
    result.files++
    for (let pageNo = 0; pageNo * size < content.length; pageNo++) {
      if (extents.isFree(pageNo)) {
        result.free++
        continue
      }
      if (doublewrite.some(area => pageNo >= area.start && pageNo < area.end)) {
        result.doublewrite++
        continue
      }
      result.compared++
      const problem = comparePage(inFile(pageNo), expected(space, pageNo, name), pageNo)
      if (problem === undefined) continue
      result.differing++
      if (result.differences.length < 20)
        result.differences.push(`${join(datadir, name)}:${pageNo}: ${problem}`)
    }

    function comparePage(
      found: Uint8Array | undefined,
      wanted: Uint8Array | undefined,
      pageNo: number,
    ): string | undefined {
      if (!found) return 'the file is cut short'
      const check = verifyPage(found, format)
      if (!check.ok) return `damaged in the file: ${check.reason}`
      if (!wanted) return isZeroPage(found) ? undefined : 'should not exist'
      let actual = found
      const flushLsn = space === 0 && pageNo === 0
      if (flushLsn || isPageCompressed(found, format)) {
        const plain = decompressPage(found, format, name)
        actual = plain === found ? Uint8Array.from(found) : plain
        if (flushLsn)
          actual.set(wanted.subarray(FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID), FIL_PAGE_FILE_FLUSH_LSN)
        stampChecksum(actual, format)
      }
      const at = firstDifference(actual, wanted)
      return at < 0 ? undefined : `differs at offset ${at}: file ${actual[at]}, computed ${wanted[at]}`
    }
  }
  return result
}
