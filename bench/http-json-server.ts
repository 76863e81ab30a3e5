// What pages cost over HTTP and JSON, as earlier systems served them: node:http, a page as base64 in a JSON object.
// It lives here only, to be measured against.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { fileURLToPath } from 'node:url'
import autocannon from 'autocannon'
import { type Benchmark, endChild, note, Report, runIfMain, startChild, wholeNumber } from './harness.ts'
import { patterns } from './load.ts'

export const httpJsonName = 'HTTP + JSON'

const pageBytes = 16384
const timeline = '00112233445566778899aabbccddeeff'

type PageRequest = { timeline: string; space: number; page: number; lsn: string }

function serve(pageCount: number): void {
  const memory = Buffer.alloc(pageCount * pageBytes)
  // Not all alike, so that nothing along the way gets it easier than real pages would.
  for (let i = 0; i < memory.length; i += 4) memory.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i)
  const answer = ({ timeline, space, page, lsn }: PageRequest): object => {
    const at = (page % pageCount) * pageBytes
    return { timeline, space, page, lsn, data: memory.toString('base64', at, at + pageBytes) }
  }
  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const body = JSON.parse(Buffer.concat(chunks).toString('utf8')) as PageRequest | PageRequest[]
    const json = JSON.stringify(Array.isArray(body) ? body.map(answer) : answer(body))
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(json) })
    response.end(json)
  }
  const server = createServer((request, response) => {
    handle(request, response).catch(error => {
      response.writeHead(400)
      response.end(String(error))
    })
  })
  server.listen(0, '127.0.0.1', () => {
    const address = server.address()
    if (address !== null && typeof address === 'object') process.stdout.write(`ready ${address.port}\n`)
  })
  process.on('SIGTERM', () => process.exit(0))
}

/** Measures all patterns with autocannon and adds them to the report. Decoding base64 on the client is not counted. */
export async function measureHttpJson(report: Report, pageCount: number, seconds: number): Promise<void> {
  const { child, match } = await startChild(
    fileURLToPath(import.meta.url),
    ['serve', String(pageCount)],
    /^ready (\d+)$/,
  )
  for (const { name, depth, pagesPerRequest } of patterns) {
    note(`${httpJsonName}: ${name}…`)
    const ask = (page: number): PageRequest => ({
      timeline,
      space: 5,
      page: page % pageCount,
      lsn: '123456789',
    })
    const requests = Array.from({ length: 64 }, (_, i) => {
      const first = i * 67
      const pages = Array.from({ length: pagesPerRequest }, (_, j) => ask(first + j))
      return { body: JSON.stringify(pagesPerRequest === 1 ? pages[0] : pages) }
    })
    const result = await autocannon({
      url: `http://127.0.0.1:${match[1]}/page`,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      requests,
      connections: depth,
      duration: seconds,
    })
    if (result.errors > 0 || result.non2xx > 0) {
      throw new Error(`the HTTP server failed: ${result.errors} errors, ${result.non2xx} bad answers`)
    }
    report.add({
      group: name,
      subject: httpJsonName,
      perSecond: (result['2xx'] * pagesPerRequest) / result.duration,
      // autocannon measures in whole milliseconds: below one it knows nothing.
      ...(result.latency.p50 >= 1
        ? { latencyUsP50: result.latency.p50 * 1000, latencyUsP99: result.latency.p99 * 1000 }
        : {}),
    })
  }
  await endChild(child)
}

export const benchmark: Benchmark = {
  summary: 'How many 16 KiB pages a second node:http sends as base64 in JSON, driven by autocannon.',
  help: "  --pages N    pages in the server's memory (4096)\n  --seconds N  length of each measurement (5)",
  options: { pages: { type: 'string' }, seconds: { type: 'string' } },
  async run(values) {
    const report = new Report({
      title: 'The baseline: pages as base64 in JSON over HTTP, loopback',
      unit: 'pages/s',
      references: [],
    })
    await measureHttpJson(
      report,
      wholeNumber(values['pages'], 4096, 'pages'),
      wholeNumber(values['seconds'], 5, 'seconds'),
    )
    return report
  },
}

if (process.argv[2] === 'serve' && process.argv[1] === fileURLToPath(import.meta.url))
  serve(Number(process.argv[3]))
else await runIfMain(import.meta.url, benchmark)
