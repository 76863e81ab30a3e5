// What TLS and tokens cost: the listener and the dialer with pages from memory, plain, with a token, and over TLS.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Connection } from '../protocol/connection.ts'
import { crc32c } from '../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../protocol/ids.ts'
import { MessageType, PageSections, Role } from '../protocol/messages.ts'
import { makeCa, makeNodeCertificate } from '../server/keys/certificates.ts'
import { apiKeyLine, makeApiKey } from '../server/shared/api-keys.ts'
import { openClientSecurity } from '../server/shared/client-security.ts'
import { Listener } from '../server/shared/listener.ts'
import { silentLog } from '../server/shared/log.ts'
import { ServerSecurity } from '../server/shared/server-security.ts'
import { type Benchmark, endChild, note, Report, runIfMain, startChild, wholeNumber } from './harness.ts'
import { atRandom, drive, type PageSource, patterns } from './load.ts'
import { latencies } from './net-ceiling.ts'

const pageBytes = 16384
const timeline = 'be'.repeat(16) as TimelineId
const plainName = 'plain TCP, no token'

/** Child: a listener whose pages come from memory, with checksums that were computed once, as a page cache has them. */
async function serve(pageCount: number, dir: string, mode: string): Promise<void> {
  const memory = Buffer.alloc(pageCount * pageBytes, 0x5a)
  const pages = Array.from({ length: pageCount }, (_, i) =>
    memory.subarray(i * pageBytes, (i + 1) * pageBytes),
  )
  const crc = crc32c(pages[0] as Buffer, 0, pageBytes)
  const security = await ServerSecurity.open(
    {
      ...(mode === 'tls' ? { tlsCert: join(dir, 'node.pem'), tlsKey: join(dir, 'node.key') } : {}),
      ...(mode === 'plain' ? {} : { apiKeys: join(dir, 'api-keys') }),
    },
    silentLog,
  )
  const listener = new Listener({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    security,
    services: [
      {
        role: Role.PAGESERVER,
        handlers: {
          [MessageType.GetPages]: ({ message }, ctx) => {
            const count = message.pages.length / 2
            const sections = new PageSections(count)
            const bulk: Buffer[] = []
            for (let i = 0; i < count; i++) {
              const page = message.pages[2 * i + 1] as number
              sections.set(i, 0, page, 0, 1 as Lsn, pageBytes, crc, false)
              bulk.push(pages[page % pageCount] as Buffer)
            }
            ctx.reply({ type: MessageType.Pages, lsn: 1 as Lsn, sections }, { bulk })
          },
        },
      },
    ],
  })
  await listener.listen()
  process.stdout.write(`ready ${listener.port}\n`)
  process.on('SIGTERM', () => process.exit(0))
}

class Source implements PageSource {
  readonly name: string
  private readonly connection: Connection

  constructor(name: string, connection: Connection) {
    this.name = name
    this.connection = connection
  }

  async fetch(pages: Uint32Array): Promise<void> {
    const lsn = 1 as Lsn
    const request = {
      type: MessageType.GetPages,
      timeline,
      lsn,
      notModifiedSinceLsn: lsn,
      flags: 0,
      pages,
    }
    for (const { bulk } of await this.connection.requestAll(request)) this.connection.recycle(bulk)
  }

  async close(): Promise<void> {
    this.connection.close()
  }
}

const modes = [
  { mode: 'plain', name: plainName },
  { mode: 'token', name: 'plain TCP, key of one timeline' },
  { mode: 'tls', name: 'TLS 1.3, key of one timeline' },
] as const

export const benchmark: Benchmark = {
  summary: 'What TLS and tokens cost: 16 KiB pages from memory over one connection.',
  help: "  --pages N    pages in the server's memory (4096)\n  --seconds N  length of each measurement (3)\n  --rounds N   (3)",
  options: { pages: { type: 'string' }, seconds: { type: 'string' }, rounds: { type: 'string' } },
  async run(values) {
    const report = new Report({
      title: 'Pages of 16 KiB through the listener and the dialer, loopback, checksums verified',
      unit: 'pages/s',
      references: [{ subject: plainName, heading: 'of plain' }],
    })
    const pageCount = wholeNumber(values['pages'], 4096, 'pages')
    const seconds = wholeNumber(values['seconds'], 3, 'seconds')
    const rounds = wholeNumber(values['rounds'], 3, 'rounds')
    const dir = mkdtempSync(join(tmpdir(), 'pal-bench-tls-'))
    try {
      const ca = await makeCa('bench', 1)
      const node = await makeNodeCertificate(ca, 'node', ['127.0.0.1'], 1)
      const key = makeApiKey()
      writeFileSync(join(dir, 'ca.pem'), ca.cert)
      writeFileSync(join(dir, 'node.pem'), node.cert)
      writeFileSync(join(dir, 'node.key'), node.key, { mode: 0o600 })
      writeFileSync(join(dir, 'key'), key, { mode: 0o600 })
      writeFileSync(join(dir, 'api-keys'), apiKeyLine('bench', [`read:${timeline}`], key))
      const pages = new Uint32Array(2 * pageCount)
      for (let i = 0; i < pageCount; i++) pages[2 * i + 1] = i
      for (let round = 0; round < rounds; round++)
        for (const { mode, name } of modes) {
          const script = fileURLToPath(import.meta.url)
          const { child, match } = await startChild(
            script,
            ['serve', String(pageCount), dir, mode],
            /^ready (\d+)$/,
          )
          const security = openClientSecurity({
            ...(mode === 'tls' ? { tlsCa: join(dir, 'ca.pem') } : {}),
            ...(mode === 'plain' ? {} : { tokenFile: join(dir, 'key') }),
          })
          const connection = await Connection.connect({ host: '127.0.0.1', port: Number(match[1]), security })
          const source = new Source(name, connection)
          for (const pattern of patterns) {
            note(`${name}: ${pattern.name}…`)
            const measured = await drive(source, pattern, atRandom(pages), seconds, 1)
            report.add({
              group: pattern.name,
              subject: name,
              perSecond: measured.pagesPerSecond,
              ...latencies(measured),
            })
          }
          await source.close()
          await endChild(child)
        }
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
    return report
  },
}

if (process.argv[2] === 'serve' && process.argv[1] === fileURLToPath(import.meta.url))
  await serve(Number(process.argv[3]), process.argv[4] as string, process.argv[5] as string)
else await runIfMain(import.meta.url, benchmark)
