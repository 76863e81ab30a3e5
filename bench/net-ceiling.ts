// How fast pages can leave a Node.js process at all: a bare node:net server that parses 32-byte headers and sends pages
// from memory, and nothing else. What our page server reaches is told as a fraction of this.
//
// A request is 32 bytes (u32 count at 0) and count pairs of u32 (space, page). The answer is a header of 32 bytes and
// count pages. All answers of one readable event go out between one cork and uncork, header and pages as separate
// buffers, so that nothing is copied in JavaScript.
import { createServer, connect as netConnect, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { type Benchmark, endChild, note, Report, runIfMain, startChild, wholeNumber } from './harness.ts'
import { atRandom, drive, type PageSource, patterns } from './load.ts'

export const ceilingName = 'node:net ceiling'

const headerBytes = 32
const pageBytes = 16384

function serve(pageCount: number): void {
  const memory = Buffer.alloc(pageCount * pageBytes, 0x5a)
  const pages = Array.from({ length: pageCount }, (_, i) =>
    memory.subarray(i * pageBytes, (i + 1) * pageBytes),
  )
  const server = createServer({ noDelay: true }, socket => {
    let rest: Buffer = Buffer.alloc(0)
    socket.on('data', (chunk: Buffer) => {
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
      let at = 0
      socket.cork()
      while (bytes.length - at >= headerBytes) {
        const count = bytes.readUInt32LE(at)
        if (bytes.length - at < headerBytes + 8 * count) break
        const header = Buffer.allocUnsafe(headerBytes)
        header.writeUInt32LE(count, 0)
        header.writeUInt32LE(count * pageBytes, 4)
        socket.write(header)
        for (let i = 0; i < count; i++) {
          const page = bytes.readUInt32LE(at + headerBytes + 8 * i + 4)
          socket.write(pages[page % pageCount]!)
        }
        at += headerBytes + 8 * count
      }
      socket.uncork()
      rest = bytes.subarray(at)
      // A client that does not read stops being read.
      if (socket.writableLength > 64 << 20) {
        socket.pause()
        socket.once('drain', () => socket.resume())
      }
    })
    socket.on('error', () => socket.destroy())
  })
  server.listen(0, '127.0.0.1', () => {
    const address = server.address()
    if (address !== null && typeof address === 'object') process.stdout.write(`ready ${address.port}\n`)
  })
  process.on('SIGTERM', () => process.exit(0))
}

/** A client that counts bytes: answers come in the order of the requests, and their sizes are known. */
class CeilingSource implements PageSource {
  readonly name = ceilingName
  private readonly socket: Socket
  /** Bytes still to come for each request in flight, oldest first. */
  private readonly waiting: { bytes: number; done: () => void }[] = []

  private constructor(port: number, onConnect: () => void) {
    this.socket = netConnect({
      port,
      host: '127.0.0.1',
      noDelay: true,
      onread: {
        buffer: Buffer.allocUnsafe(1 << 20),
        callback: bytes => {
          this.received(bytes)
          return true
        },
      },
    })
    this.socket.once('connect', onConnect)
  }

  static connect(port: number): Promise<CeilingSource> {
    return new Promise(resolve => {
      const source = new CeilingSource(port, () => resolve(source))
    })
  }

  private received(bytes: number): void {
    let left = bytes
    while (left > 0) {
      const first = this.waiting[0]
      if (first === undefined) throw new Error('the ceiling server sent more than was asked for')
      const taken = Math.min(left, first.bytes)
      first.bytes -= taken
      left -= taken
      if (first.bytes === 0) {
        this.waiting.shift()
        first.done()
      }
    }
  }

  fetch(pages: Uint32Array): Promise<void> {
    const count = pages.length >>> 1
    const request = Buffer.allocUnsafe(headerBytes + 8 * count)
    request.writeUInt32LE(count, 0)
    for (let i = 0; i < pages.length; i++) request.writeUInt32LE(pages[i]!, headerBytes + 4 * i)
    return new Promise(resolve => {
      this.waiting.push({ bytes: headerBytes + count * pageBytes, done: resolve })
      this.socket.write(request)
    })
  }

  close(): Promise<void> {
    return new Promise(resolve => {
      this.socket.once('close', () => resolve())
      this.socket.destroy()
    })
  }
}

/** Measures all patterns and adds them to the report. */
export async function measureCeiling(report: Report, pageCount: number, seconds: number): Promise<void> {
  const { child, match } = await startChild(
    fileURLToPath(import.meta.url),
    ['serve', String(pageCount)],
    /^ready (\d+)$/,
  )
  const source = await CeilingSource.connect(Number(match[1]))
  const pages = new Uint32Array(2 * pageCount)
  for (let i = 0; i < pageCount; i++) pages[2 * i + 1] = i
  for (const pattern of patterns) {
    note(`${source.name}: ${pattern.name}…`)
    const measured = await drive(source, pattern, atRandom(pages), seconds, 1)
    report.add({
      group: pattern.name,
      subject: source.name,
      perSecond: measured.pagesPerSecond,
      ...latencies(measured),
    })
  }
  await source.close()
  await endChild(child)
}

export function latencies(measured: { latencyUsP50: number; latencyUsP99: number }): {
  latencyUsP50: number
  latencyUsP99: number
} {
  return { latencyUsP50: measured.latencyUsP50, latencyUsP99: measured.latencyUsP99 }
}

export const benchmark: Benchmark = {
  summary: 'How many 16 KiB pages a second a bare node:net server sends over loopback.',
  help: "  --pages N    pages in the server's memory (4096)\n  --seconds N  length of each measurement (5)",
  options: { pages: { type: 'string' }, seconds: { type: 'string' } },
  async run(values) {
    const report = new Report({
      title: 'The ceiling: bare node:net, 16 KiB pages, loopback',
      unit: 'pages/s',
      references: [],
    })
    await measureCeiling(
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
