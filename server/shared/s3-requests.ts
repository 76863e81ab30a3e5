/**
 * Requests to an S3 service: one client, time-outs, retries, and what each failure means for the caller.
 *
 * The SDK's own retries are off. Whoever repeats a request here must know that an earlier attempt may have taken effect
 * although no reply came (object-store-s3.ts depends on that), and a body that is a stream of a file must be opened anew.
 */
import { S3Client } from '@aws-sdk/client-s3'
import { internalError, invalidError, PalimpsestError, retryError } from './errors.ts'

/**
 * How the bytes of an upload are protected on their way:
 *
 *     aws    a CRC32 in a trailer, as today's SDK does by default; Amazon S3, Ceph from Squid on
 *     md5    Content-MD5, which every S3 service has known from the beginning, older Ceph included
 *     none   nothing but TLS and TCP; our own CRC-32C is verified whenever an object is read
 */
export const S3_CHECKSUMS = ['aws', 'md5', 'none'] as const
export type S3Checksums = (typeof S3_CHECKSUMS)[number]

export interface S3Credentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
}

export interface S3Options {
  /** `http://127.0.0.1:7480`; without, Amazon's for the region. */
  readonly endpoint?: string | undefined
  /** Default: what the environment says (AWS_REGION, the profile); with an endpoint of one's own `us-east-1`. */
  readonly region?: string | undefined
  /** `ENDPOINT/bucket/key` instead of `bucket.ENDPOINT/key`. */
  readonly pathStyle?: boolean | undefined
  /** Default `aws` without an endpoint of one's own, `md5` with one. */
  readonly checksums?: S3Checksums | undefined
  /** For tests; the default is the SDK's chain: environment, profile, container, instance. */
  readonly credentials?: S3Credentials | (() => Promise<S3Credentials>) | undefined
  readonly connectTimeoutMs?: number | undefined
  /** A connection on which nothing moves for so long is given up. What does move may take as long as it needs. */
  readonly idleTimeoutMs?: number | undefined
  /** Until a reply begins, beside the time for what is sent. */
  readonly replyTimeoutMs?: number | undefined
  readonly attemptsMax?: number | undefined
  readonly backoffMs?: number | undefined
}

const CONNECT_TIMEOUT_MS = 5_000
const IDLE_TIMEOUT_MS = 20_000
const ATTEMPTS_MAX = 6
const BACKOFF_MS = 100
const BACKOFF_MS_MAX = 5_000
/** Told to slow down, we wait at least so long. */
const SLOW_DOWN_MS = 500
/** Until a reply begins, beside the time for what is sent. */
const REPLY_MS_MAX = 30_000
/** The slowest upload that is waited for. */
const SENT_BYTES_PER_SECOND_MIN = 256 << 10

/** What passes by itself, by the names that services give it. */
const PASSING = new Set([
  'BadDigest',
  'ConditionalRequestConflict',
  'InternalError',
  'OperationAborted',
  'RequestTimeout',
  // The SDK has learnt the difference of the clocks from the answer, and reckons with it from then on.
  'RequestTimeTooSkewed',
  'ServiceUnavailable',
  'SlowDown',
  'Throttling',
  'ThrottlingException',
  'TooManyRequestsException',
  'XAmzContentSHA256Mismatch',
])
const SLOW_DOWN = new Set(['SlowDown', 'ServiceUnavailable', 'Throttling', 'ThrottlingException'])

/** Credentials that were valid once: they are looked for anew, where new ones may lie by now. */
const EXPIRED = new Set([
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidAccessKeyId',
  'InvalidToken',
  'TokenRefreshRequired',
])
/** Not for every single one of many requests that fail. */
const RENEW_EVERY_MS = 10_000

const LOCAL_CODES = new Set([
  'ENOSPC',
  'EDQUOT',
  'EIO',
  'EROFS',
  'EACCES',
  'ENOENT',
  'EISDIR',
  'EBADF',
  'EMFILE',
  'ENFILE',
])

/** A reply whose contents did not come through as they were sent: the request is repeated. */
export class DamagedReply extends Error {
  override name = 'DamagedReply'
}

/** How long an attempt is waited for: until its reply begins, and then from each piece of its contents to the next. */
export class Patience {
  readonly #stop = new AbortController()
  readonly #idleMs: number
  #timer: NodeJS.Timeout
  #bytes = 0
  /** Why it was at an end; undefined if it is not. */
  ended: string | undefined

  constructor(replyMs: number, idleMs: number) {
    this.#idleMs = idleMs
    this.#timer = setTimeout(() => this.#give('no reply in time'), replyMs)
  }

  get signal(): AbortSignal {
    return this.#stop.signal
  }

  /** So many bytes of the reply came, and the next ones are waited for. */
  moved(bytes: number): void {
    this.#bytes += bytes
    this.hold()
    this.#timer = setTimeout(
      () => this.#give(`the reply stands still after ${this.#bytes} bytes, for ${this.#idleMs / 1000} s`),
      this.#idleMs,
    )
  }

  /** What comes next is not waited for: it is the caller who takes his time. Until `moved`. */
  hold(): void {
    clearTimeout(this.#timer)
  }

  end(): void {
    this.hold()
  }

  #give(why: string): void {
    this.ended = why
    this.#stop.abort()
  }
}

export class S3Requests {
  readonly checksums: S3Checksums
  readonly #makeClient: () => S3Client
  #client: S3Client
  #renewedMs = Number.NEGATIVE_INFINITY
  readonly #description: string
  readonly #attemptsMax: number
  readonly #backoffMs: number
  readonly #idleMs: number
  readonly #replyMs: number
  readonly #needs: string
  readonly #closing = new AbortController()

  /**
   * @param needs for messages: what the credentials must allow
   * @throws PalimpsestError of kind invalid for an endpoint that is none
   */
  constructor(description: string, options: S3Options, needs: string) {
    const { endpoint } = options
    // Not to be repeated: it is in everybody's list of processes already.
    if (endpoint?.includes('@'))
      throw invalidError(
        'the S3 endpoint has credentials in it; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile',
      )
    if (endpoint !== undefined && !/^https?:\/\/[^/?#]+\/?$/.test(endpoint))
      throw invalidError(
        `S3 endpoint ${JSON.stringify(endpoint)} is no address like https://s3.example.org:9000`,
      )
    this.#description = description
    this.#attemptsMax = options.attemptsMax ?? ATTEMPTS_MAX
    this.#backoffMs = options.backoffMs ?? BACKOFF_MS
    this.#idleMs = options.idleTimeoutMs ?? IDLE_TIMEOUT_MS
    this.#replyMs = options.replyTimeoutMs ?? REPLY_MS_MAX
    this.#needs = needs
    this.checksums = options.checksums ?? (endpoint === undefined ? 'aws' : 'md5')
    const protection = this.checksums === 'aws' ? 'WHEN_SUPPORTED' : 'WHEN_REQUIRED'
    const region =
      options.region ??
      (endpoint !== undefined && !process.env['AWS_REGION'] && !process.env['AWS_PROFILE']
        ? 'us-east-1'
        : undefined)
    this.#makeClient = () =>
      new S3Client({
        ...(endpoint === undefined ? {} : { endpoint }),
        ...(region === undefined ? {} : { region }),
        ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
        forcePathStyle: options.pathStyle ?? false,
        maxAttempts: 1,
        // It would tell on the console that it does not retry.
        logger: { trace() {}, debug() {}, info() {}, warn() {}, error() {} },
        requestChecksumCalculation: protection,
        responseChecksumValidation: protection,
        requestHandler: {
          connectionTimeout: options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS,
          socketTimeout: this.#idleMs,
        },
      })
    this.#client = this.#makeClient()
  }

  /** Through which to send the next request; another one when credentials were renewed. */
  get client(): S3Client {
    return this.#client
  }

  /** The SDK keeps what it has found in files and the environment for good. @returns whether it is worth another attempt */
  #renewCredentials(): boolean {
    const nowMs = performance.now()
    if (nowMs - this.#renewedMs < RENEW_EVERY_MS) return false
    this.#renewedMs = nowMs
    // Requests under way go on with the old one.
    this.#client = this.#makeClient()
    return true
  }

  /**
   * Runs a request until it succeeds, fails for good, or has failed too often.
   *
   * @param what for messages: "getting KEY"
   * @param sentBytes how much is sent, for the time until the reply begins
   * @param attempt one attempt; what it throws decides. `number` counts from 0. Whoever reads a reply's contents tells
   *   `patience` of each piece that comes: what moves is waited for, however long all of it takes
   * @throws PalimpsestError: `retry` when the service cannot be reached or is overloaded, else `internal`
   */
  async run<T>(
    what: string,
    sentBytes: number,
    attempt: (signal: AbortSignal, number: number, patience: Patience) => Promise<T>,
  ): Promise<T> {
    const closing = this.#closing.signal
    for (let number = 0; ; number++) {
      if (closing.aborted) throw retryError(`${what} in ${this.#description}: the store is being closed`)
      const patience = new Patience(
        this.#replyMs + Math.ceil((sentBytes / SENT_BYTES_PER_SECOND_MIN) * 1000),
        this.#idleMs,
      )
      try {
        return await attempt(AbortSignal.any([closing, patience.signal]), number, patience)
      } catch (error) {
        if (error instanceof PalimpsestError || isLocal(error)) throw error
        const text = `${what} in ${this.#description}: ${patience.ended ?? explain(error, this.#needs)}`
        if (EXPIRED.has(errorName(error)) && this.#renewCredentials()) continue
        if (!isPassing(error)) throw internalError(text, error)
        if (number + 1 >= this.#attemptsMax)
          throw retryError(`${text} (${number + 1} attempts); it is worth trying again later`, error)
        await this.#pause(number, errorName(error))
      } finally {
        patience.end()
      }
    }
  }

  /** Exponential back-off with full jitter; ends at once when the store is closed. */
  #pause(number: number, name: string): Promise<void> {
    const ceiling = Math.min(BACKOFF_MS_MAX, this.#backoffMs * 2 ** number)
    const ms =
      (SLOW_DOWN.has(name) ? Math.min(SLOW_DOWN_MS, this.#backoffMs * 5) : 0) + Math.random() * ceiling
    return new Promise(resolve => {
      const signal = this.#closing.signal
      const done = (): void => {
        clearTimeout(timer)
        signal.removeEventListener('abort', done)
        resolve()
      }
      const timer = setTimeout(done, ms)
      signal.addEventListener('abort', done, { once: true })
    })
  }

  /** Gives up all requests under way; they fail with `retry`. */
  close(): void {
    this.#closing.abort()
    this.#client.destroy()
  }
}

export function httpStatus(error: unknown): number | undefined {
  return (error as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode
}

export function errorName(error: unknown): string {
  return String((error as { name?: unknown }).name ?? '')
}

/** Whether a 404 is about the object, not about the bucket, nor of a server in between that knows nothing of either. */
export function isAbsent(error: unknown): boolean {
  return httpStatus(error) === 404 && errorName(error) === 'NoSuchKey'
}

/** A file of ours that cannot be read or written; what the service or the network does has other codes. */
function isLocal(error: unknown): boolean {
  return LOCAL_CODES.has(String((error as NodeJS.ErrnoException).code))
}

function isPassing(error: unknown): boolean {
  const name = errorName(error)
  if (error instanceof DamagedReply || PASSING.has(name)) return true
  if (name === 'CredentialsProviderError') return false
  const status = httpStatus(error)
  // Without a status there was no reply: a time-out, a name that cannot be resolved, a connection that broke.
  if (status === undefined) return !(error instanceof TypeError || error instanceof RangeError)
  if (status === 404) return name !== 'NoSuchBucket'
  return status === 409 || status === 429 || status === 408 || (status >= 500 && status !== 501)
}

/** What happened and what to do. */
function explain(error: unknown, needs: string): string {
  const name = errorName(error)
  const message = error instanceof Error ? error.message : String(error)
  const code = (error as { code?: unknown }).code
  const status = httpStatus(error)
  if (name === 'CredentialsProviderError')
    return 'no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role'
  if (name === 'NoSuchBucket') return 'the bucket does not exist; create it, or correct --store'
  if (error instanceof DamagedReply) return message
  if (EXPIRED.has(name))
    return `the credentials are no longer valid (${name}): ${message}; renew them where they come from, no restart is needed unless that is this process's environment`
  if (name === 'RequestTimeTooSkewed') return `${message}; set this machine's clock`
  if (name === 'PermanentRedirect' || name === 'AuthorizationHeaderMalformed' || status === 301)
    return `${message}; the bucket is in another region: set --s3-region`
  if (status === 403)
    return `access denied (${name}): ${message}; check the credentials and that they allow ${needs} here`
  if (status === 501) return `the service does not implement this request (${name}): ${message}`
  if (status !== undefined) return `${name} (HTTP ${status})${message === name ? '' : `: ${message}`}`
  return `the service cannot be reached: ${typeof code === 'string' && !message.includes(code) ? `${code} ` : ''}${message || name}`
}
