/**
 * A small S3 service in memory, for the faults that a real one shows too rarely: replies that are lost after the request took
 * effect, refusals, contents cut short, objects that are listed and gone. It has what object-store-s3.ts asks for, but for
 * uploads in parts; it does not check signatures.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { S3StoreOptions } from '../../server/shared/object-store-s3.ts'

/**
 * lost: it takes effect, and the connection ends without a reply. refused: the connection ends before anything happened.
 * slow: 503 SlowDown. internal: 500. denied: 403. cut: half of the contents. damaged: contents with one bit flipped.
 * conflict: 409. absent: 404. skewed: 403, this machine's clock is wrong. portal: 200, with what is no answer of S3's. elsewhere: 404 of
 * a server that is none. trickle: the contents in pieces, with time between them. stall: half of the contents, and then nothing,
 * on a connection that stays.
 */
export type S3Fault =
  | 'lost'
  | 'refused'
  | 'slow'
  | 'internal'
  | 'denied'
  | 'cut'
  | 'damaged'
  | 'conflict'
  | 'absent'
  | 'skewed'
  | 'portal'
  | 'elsewhere'
  | 'trickle'
  | 'stall'

interface StoredObject {
  readonly bytes: Buffer
  readonly metadata: Record<string, string>
}

const PAGE_KEYS = 5
const TRICKLE_PIECES = 25
export const TRICKLE_MS = 60 * TRICKLE_PIECES

export class S3Service {
  readonly objects = new Map<string, StoredObject>()
  /** Asked for each request. The key is without the bucket; a listing's is its prefix. */
  fault: (method: 'PUT' | 'GET' | 'HEAD' | 'DELETE' | 'LIST', key: string) => S3Fault | undefined = () =>
    undefined
  /** As services do that know nothing of conditional writes. */
  ignoresConditions = false
  /** Listings of more than a few keys are cut short, and do not say where they go on. */
  forgetsTokens = false
  /** The only access key that it knows, if it looks at that. */
  accessKey: string | undefined
  requests: string[] = []
  readonly #server: Server

  private constructor() {
    this.#server = createServer((request, response) => {
      this.#handle(request, response).catch(error => response.destroy(error as Error))
    })
  }

  static async start(t: { teardown(cleanUp: () => unknown): void }): Promise<S3Service> {
    const service = new S3Service()
    service.#server.listen(0, '127.0.0.1')
    await once(service.#server, 'listening')
    t.teardown(() => {
      service.#server.closeAllConnections()
      service.#server.close()
    })
    return service
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as { port: number }).port}`
  }

  options(more: Partial<S3StoreOptions> = {}): S3StoreOptions {
    return {
      bucket: 'memory',
      prefix: 'p',
      endpoint: this.endpoint,
      pathStyle: true,
      credentials: { accessKeyId: 'k', secretAccessKey: 's' },
      backoffMs: 2,
      ...more,
    }
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, this.endpoint)
    const [, bucket, ...rest] = url.pathname.split('/').map(decodeURIComponent)
    const listing = url.searchParams.get('list-type') === '2'
    const key = listing ? (url.searchParams.get('prefix') ?? '') : rest.join('/')
    const method = listing ? 'LIST' : (request.method as 'PUT' | 'GET' | 'HEAD' | 'DELETE')
    const pieces: Buffer[] = []
    for await (const piece of request) pieces.push(piece as Buffer)
    this.requests.push(`${method} ${key}`)
    const fault = this.fault(method, key)
    if (fault === 'refused') return void request.socket.destroy()
    if (bucket !== 'memory') return fail(response, 404, 'NoSuchBucket')
    if (fault === 'slow') return fail(response, 503, 'SlowDown')
    if (fault === 'internal') return fail(response, 500, 'InternalError')
    if (fault === 'denied') return fail(response, 403, 'AccessDenied')
    if (fault === 'skewed') return fail(response, 403, 'RequestTimeTooSkewed')
    if (fault === 'portal') return void response.end('<html>Welcome to our network</html>')
    if (fault === 'elsewhere') {
      response.writeHead(404, { 'content-type': 'text/html' })
      return void response.end('<html>nothing here</html>')
    }
    if (
      this.accessKey !== undefined &&
      !request.headers.authorization?.includes(`Credential=${this.accessKey}/`)
    )
      return fail(response, 400, 'ExpiredToken')
    if (fault === 'conflict') return fail(response, 409, 'ConditionalRequestConflict')
    if (fault === 'absent') return fail(response, 404, 'NoSuchKey')
    const answer = this.#answer(method, key, request, Buffer.concat(pieces), url)
    if (fault === 'lost') return void request.socket.destroy()
    if (answer.error !== undefined) return fail(response, answer.status, answer.error)
    let body = answer.body ?? Buffer.alloc(0)
    const length = method === 'HEAD' ? answer.bytes : body.length
    response.writeHead(answer.status, { ...answer.headers, 'content-length': String(length ?? 0) })
    if (fault === 'cut') {
      response.write(body.subarray(0, body.length >> 1), () => request.socket.destroy())
      return
    }
    if (fault === 'stall') return void response.write(body.subarray(0, body.length >> 1))
    if (fault === 'trickle') {
      const pieceBytes = Math.ceil(body.length / TRICKLE_PIECES)
      for (let at = 0; at < body.length && !response.destroyed; at += pieceBytes) {
        response.write(body.subarray(at, at + pieceBytes))
        await sleep(TRICKLE_MS / TRICKLE_PIECES)
      }
      return void response.end()
    }
    if (fault === 'damaged' && body.length > 0) {
      body = Buffer.from(body)
      body[body.length >> 1]! ^= 4
    }
    response.end(method === 'HEAD' ? undefined : body)
  }

  #answer(method: string, key: string, request: IncomingMessage, sent: Buffer, url: URL): Answer {
    const found = this.objects.get(key)
    switch (method) {
      case 'PUT': {
        const md5 = request.headers['content-md5']
        if (md5 !== undefined && md5 !== createHash('md5').update(sent).digest('base64'))
          return { status: 400, error: 'BadDigest' }
        if (request.headers['if-none-match'] === '*' && found !== undefined && !this.ignoresConditions)
          return { status: 412, error: 'PreconditionFailed' }
        const metadata: Record<string, string> = {}
        for (const [name, value] of Object.entries(request.headers))
          if (name.startsWith('x-amz-meta-')) metadata[name] = String(value)
        this.objects.set(key, { bytes: sent, metadata })
        return { status: 200, headers: { etag: '"e"' } }
      }
      case 'DELETE':
        this.objects.delete(key)
        return { status: 204 }
      case 'LIST':
        return this.#list(key, url.searchParams.get('continuation-token') ?? '')
      default: {
        if (found === undefined) return { status: 404, error: 'NoSuchKey' }
        const { bytes, metadata } = found
        const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
        const headers = { ...metadata, etag: '"e"' }
        if (range === null) return { status: 200, headers, body: bytes, bytes: bytes.length }
        const from = Number(range[1])
        if (from >= bytes.length) return { status: 416, error: 'InvalidRange' }
        const body = bytes.subarray(from, Number(range[2]) + 1)
        const contentRange = `bytes ${from}-${from + body.length - 1}/${bytes.length}`
        return { status: 206, headers: { ...headers, 'content-range': contentRange }, body }
      }
    }
  }

  #list(prefix: string, after: string): Answer {
    const keys = [...this.objects.keys()].filter(key => key.startsWith(prefix) && key > after).sort()
    const page = keys.slice(0, PAGE_KEYS)
    const contents = page.map(
      key => `<Contents><Key>${key}</Key><Size>${this.objects.get(key)!.bytes.length}</Size></Contents>`,
    )
    const more = keys.length > page.length
    const token =
      more && !this.forgetsTokens ? `<NextContinuationToken>${page.at(-1)}</NextContinuationToken>` : ''
    const xml = `<?xml version="1.0"?><ListBucketResult><IsTruncated>${more}</IsTruncated>${token}${contents.join('')}</ListBucketResult>`
    return { status: 200, headers: { 'content-type': 'application/xml' }, body: Buffer.from(xml) }
  }
}

interface Answer {
  readonly status: number
  readonly error?: string
  readonly headers?: Record<string, string>
  readonly body?: Buffer
  /** Size of the object, for HEAD. */
  readonly bytes?: number
}

function fail(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { 'content-type': 'application/xml' })
  response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>${code} of a test</Message></Error>`)
}
