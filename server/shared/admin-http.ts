/**
 * The admin port: plain HTTP for monitoring, apart from the listener and off unless asked for.
 *
 *     GET /metrics   Prometheus text
 *     GET /healthz   200 while the process can answer at all
 *     GET /readyz    200 once it does its work, else 503; one line for each condition
 *
 * Nobody has to prove who he is here, so it is for loopback addresses; others need the same insistence as the listener's.
 * Nothing can be changed through it. It is bounded: connections (the oldest gives way), bytes of a request's head, time to
 * send one and to take the answer; a request with a body is refused.
 *
 * A browser on this machine reaches loopback for every page that it shows. It keeps the answers from the page, unless the
 * page's own name was made to mean 127.0.0.1 meanwhile (DNS rebinding). So on loopback, who asks must have named this
 * machine by a number or as localhost. docs/security.md, "The admin port", has what was weighed.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { isIP, type Socket } from 'node:net'
import { invalidError, retryError } from './errors.ts'
import { isLoopback } from './listener.ts'
import type { Log } from './log.ts'
import type { Metrics } from './metrics.ts'

const CONNECTIONS_MAX = 32
const HEAD_BYTES_MAX = 8 * 1024
/** For a request's head to arrive, and for a whole exchange without movement. */
const HEAD_MS = 5_000
const IDLE_MS = 10_000
const REQUESTS_PER_CONNECTION_MAX = 1000

export interface AdminOptions {
  readonly host: string
  /** 0: any free port; see `AdminServer.address`. */
  readonly port: number
  readonly insecureListen?: boolean | undefined
  readonly metrics: Metrics
  readonly readiness: Readiness
  readonly log: Log
}

/**
 * What must be so before a process counts as ready. A condition is a function that says what is still missing, or
 * undefined when nothing is.
 */
export class Readiness {
  readonly #conditions = new Map<string, () => string | undefined>()

  add(name: string, missing: () => string | undefined): void {
    this.#conditions.set(name, missing)
  }

  /** A condition that is met when the function that this returns has been called. */
  pending(name: string, missing: string): () => void {
    let met = false
    this.add(name, () => (met ? undefined : missing))
    return () => {
      met = true
    }
  }

  get(): { readonly ready: boolean; readonly lines: readonly string[] } {
    let ready = true
    const lines = [...this.#conditions].map(([name, missing]) => {
      const what = missing()
      if (what === undefined) return `ok ${name}`
      ready = false
      return `not ready ${name}: ${what}`
    })
    return { ready, lines }
  }
}

export class AdminServer {
  readonly #options: AdminOptions
  readonly #server: Server
  /** In the order of arrival. */
  readonly #sockets = new Set<Socket>()

  static async listen(options: AdminOptions): Promise<AdminServer> {
    if (!isLoopback(options.host) && options.insecureListen !== true)
      throw invalidError(
        `refusing to serve metrics on ${options.host}: the admin port is neither encrypted nor authenticated. ` +
          'Use --admin-listen 127.0.0.1:PORT, or, on a network that you trust, add --insecure-admin-listen.',
      )
    const admin = new AdminServer(options)
    await admin.#listen()
    return admin
  }

  private constructor(options: AdminOptions) {
    this.#options = options
    this.#server = createServer(
      {
        maxHeaderSize: HEAD_BYTES_MAX,
        headersTimeout: HEAD_MS,
        requestTimeout: HEAD_MS,
        keepAliveTimeout: IDLE_MS,
        connectionsCheckingInterval: 1000,
      },
      (request, response) => this.#answer(request, response),
    )
    this.#server.on('connection', socket => this.#admit(socket))
    this.#server.maxRequestsPerSocket = REQUESTS_PER_CONNECTION_MAX
    // A client that does not take its answer: the socket stands still.
    this.#server.setTimeout(IDLE_MS, socket => socket.destroy())
    this.#server.on('clientError', (_, socket) => {
      // It is not waited for that the client hangs up, too.
      if (socket.writable)
        socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n', () => socket.destroy())
      else socket.destroy()
    })
  }

  /** `HOST:PORT` as bound. */
  get address(): string {
    const { host, port } = this.#options
    const bound = this.#server.address()
    const at = typeof bound === 'object' && bound !== null ? bound.port : port
    return host.includes(':') ? `[${host}]:${at}` : `${host}:${at}`
  }

  #listen(): Promise<void> {
    const { host, port, log } = this.#options
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const failed = (error: NodeJS.ErrnoException): void => {
      const hint =
        error.code === 'EADDRINUSE' ? ': another process listens there; stop it or choose another port' : ''
      reject(retryError(`cannot listen on admin address ${host}:${port}: ${error.code}${hint}`, error))
    }
    this.#server.once('error', failed)
    this.#server.listen({ host, port }, () => {
      this.#server.off('error', failed)
      this.#server.on('error', error => log.error({ err: error }, 'admin port failed'))
      resolve()
    })
    return promise
  }

  /** Who comes is let in, and the oldest leaves: many who say nothing keep nobody out. */
  #admit(socket: Socket): void {
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    if (this.#sockets.size <= CONNECTIONS_MAX) return
    const [oldest] = this.#sockets
    oldest?.destroy()
    if (oldest !== undefined) this.#sockets.delete(oldest)
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    if (isLoopback(this.#options.host) && !isThisMachine(request.headers.host)) {
      response.setHeader('Connection', 'close')
      send(response, 421, 'ask for this machine by number, or as localhost\n')
      return
    }
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length']) > 0) {
      response.setHeader('Connection', 'close')
      send(response, 413, 'requests with a body are not taken here\n')
      return
    }
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.setHeader('Allow', 'GET, HEAD')
      send(response, 405, 'only GET and HEAD\n')
      return
    }
    switch ((request.url ?? '').split('?', 1)[0]) {
      case '/metrics':
        void this.#metrics(response)
        return
      case '/healthz':
        send(response, 200, 'ok\n')
        return
      case '/readyz': {
        const { ready, lines } = this.#options.readiness.get()
        send(response, ready ? 200 : 503, `${[...lines, ready ? 'ready' : 'not ready'].join('\n')}\n`)
        return
      }
      default:
        send(response, 404, 'there are /metrics, /healthz and /readyz\n')
    }
  }

  async #metrics(response: ServerResponse): Promise<void> {
    const { metrics, log } = this.#options
    try {
      send(response, 200, await metrics.text(), metrics.contentType)
    } catch (error) {
      log.error({ err: error }, 'metrics could not be collected')
      send(response, 500, 'metrics could not be collected; see the log\n')
    }
  }

  async close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#server.close(() => resolve())
    this.#server.closeAllConnections()
    await promise
  }
}

/** Whether a Host header is a number, or localhost. Without one: it is no browser. */
function isThisMachine(host: string | undefined): boolean {
  if (host === undefined || host === '') return true
  const name = host.replace(/:\d*$/, '').toLowerCase()
  return name === 'localhost' || name.endsWith('.localhost') || isIP(name.replace(/^\[(.*)\]$/, '$1')) !== 0
}

function send(
  response: ServerResponse,
  status: number,
  text: string,
  type = 'text/plain; charset=utf-8',
): void {
  const body = Buffer.from(text)
  response.writeHead(status, {
    'Content-Type': type,
    'Content-Length': body.length,
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
  })
  // Node.js itself leaves the body out of an answer to HEAD.
  response.end(body)
}
