// Unpacks what scripts/record-show.js made. Needs the project's own Node.js (for zstd) and tar.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import * as zlib from 'node:zlib'
import { root, SetupError } from './checkout.js'

const fixture = join(root, 'test', 'fixtures', 'show')

/**
 * @param {string} directory to unpack into; made if it is not there
 * @returns {import('./recorded-show.js').RecordedShow}
 */
export function unpackShow(directory) {
  mkdirSync(directory, { recursive: true })
  const tar = zlib.zstdDecompressSync(readFileSync(join(fixture, 'show.tar.zst')))
  const result = spawnSync('tar', ['-x', '-C', directory], { input: tar, stdio: ['pipe', 'ignore', 'pipe'] })
  if (result.error) throw new SetupError(`cannot run tar (${result.error.message}); install it and try again`)
  if (result.status !== 0) throw new SetupError(`tar failed: ${String(result.stderr).trim()}`)
  return {
    baseDatadir: join(directory, 'base'),
    redoFile: join(directory, 'redo'),
    finalDatadir: join(directory, 'final'),
    story: JSON.parse(readFileSync(join(fixture, 'show.json'), 'utf8')),
  }
}
