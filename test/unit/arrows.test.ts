/** Holds the arrows of docs/architecture.md: who may import whom. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')

/** For each folder (longest prefix wins): the folders or files of ours that it may import, besides itself. */
const ALLOWED: Record<string, string[]> = {
  'protocol/': [],
  'parser/': ['protocol/ids.ts', 'protocol/crc32c.ts'],
  'server/shared/': ['protocol/'],
  'server/safekeeper/': ['server/shared/', 'protocol/'],
  'server/pageserver/': ['server/shared/', 'parser/', 'protocol/'],
  'server/datadir/': ['server/shared/', 'parser/', 'protocol/'],
  'server/attach/': ['server/datadir/', 'server/shared/', 'parser/', 'protocol/'],
  'server/keys/': ['server/shared/'],
  'server/commands/': ['server/', 'bench/', 'parser/', 'protocol/'],
  'server/cli.ts': ['server/commands/'],
}

/** Where a folder of pure code must not reach: the outside world. */
const IMPURE = /^node:(?!util$|assert$|buffer$)|^(piscina|pino|prom-client|commander)$/
const PURE = ['parser/', 'server/pageserver/core/', 'server/safekeeper/core/']
/** zlib is computation, not I/O; page_compressed pages need it. */
const PURE_EXCEPTIONS = new Set(['parser/page-compression.ts node:zlib'])

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.name.endsWith('.ts'))
    .map(entry => relative(root, join(entry.parentPath, entry.name)))
}

function importsOf(file: string): string[] {
  const text = readFileSync(join(root, file), 'utf8')
  return [
    ...text.matchAll(
      /^(?:import|export)\s[^'"]*?from\s+['"]([^'"]+)['"]|^import\s+['"]([^'"]+)['"]|import\(['"]([^'"]+)['"]\)/gm,
    ),
  ].map(match => (match[1] ?? match[2] ?? match[3]) as string)
}

const files = ['protocol', 'parser', 'server'].flatMap(sources)

t.test('imports follow the arrows', async t => {
  for (const file of files) {
    const home = Object.keys(ALLOWED)
      .filter(prefix => file.startsWith(prefix))
      .sort((a, b) => b.length - a.length)[0]
    t.ok(home, `${file} lies in a folder that docs/architecture.md knows`)
    if (!home) continue
    const wrong = importsOf(file)
      .filter(name => name.startsWith('.'))
      .map(name => relative(root, resolve(root, dirname(file), name)))
      .filter(target => !target.startsWith(home) && !ALLOWED[home]?.some(prefix => target.startsWith(prefix)))
      .filter(target => target !== 'package.json')
    t.same(wrong, [], `${file} imports nothing it may not`)
  }
})

t.test('pure folders reach no outside world', async t => {
  for (const file of files.filter(file => PURE.some(prefix => file.startsWith(prefix)))) {
    const wrong = importsOf(file).filter(name => IMPURE.test(name) && !PURE_EXCEPTIONS.has(`${file} ${name}`))
    t.same(wrong, [], `${file} is pure`)
  }
})
