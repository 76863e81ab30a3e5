/**
 * The client's socket, plain or TLS, with a FrameReader at its end. A plain socket reads into memory of ours, so that a
 * large bulk arrives in place (views of a SharedArrayBuffer are fine there: test/unit/protocol/connection.test.ts holds
 * it); TLS decrypts into memory of its own, from which bulks are copied.
 */
import { connect as connectTcp, isIP, isIPv4, type Socket } from 'node:net'
import { connect as connectTls, TLSSocket } from 'node:tls'
import { type ErrorKind, PalimpsestError } from './errors.ts'
import type { FrameReader } from './frame.ts'
import type { ConnectionSecurity } from './security.ts'

export interface ClientSocketEvents {
  /** The reader threw: the stream is not what the protocol says. */
  garbled(error: unknown): void
  lost(kind: ErrorKind, why: string, cause?: unknown): void
  /** Whether the server has said anything. */
  heard(): boolean
}

export interface ClientSocket {
  readonly socket: Socket
  /** Resolves when the hello may be sent: at once, or when the server has proved that it is the one dialled. */
  readonly secured: Promise<void> | undefined
}

const KEEP_ALIVE_MS = 10_000

/** 127.0.0.0/8, ::1 and localhost. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
}

/** What may be behind it when a server closes without a word: over plain TCP, over TLS. */
const SILENT_HINT = [
  ' without a word; if it speaks TLS, give --tls-ca FILE',
  ' without a word; perhaps another CA signed the client certificate than the one it knows',
]

/** @throws PalimpsestError of kind invalid if the token must not go there, or TLS cannot be set up */
export function openClientSocket(
  address: { readonly host: string; readonly port: number },
  security: ConnectionSecurity | undefined,
  reader: FrameReader,
  events: ClientSocketEvents,
): ClientSocket {
  const { host, port } = address
  if (security?.token && !security.tls && !security.insecureToken && !isLoopback(host))
    throw new PalimpsestError(
      'invalid',
      `not sending the token to ${host}:${port} unencrypted: give --tls-ca, or --insecure-token on a network that encrypts by itself`,
    )
  const tls = security?.tls !== undefined
  const { socket, secured } = security?.tls
    ? openTls(host, port, security.tls(), reader, events)
    : openPlain(host, port, reader, events)
  socket.on('error', (error: NodeJS.ErrnoException) => {
    const { kind, why } = explain(error, host)
    events.lost(kind, why, error)
  })
  socket.on('end', () =>
    events.lost('retry', `the server closed it${events.heard() ? '' : SILENT_HINT[+tls]}`),
  )
  socket.on('close', () => events.lost('retry', 'closed'))
  return { socket, secured }
}

/** The first bytes of a TLS alert: what a TLS server says to one who speaks plainly. */
const ALERT = 0x15

function openPlain(
  host: string,
  port: number,
  reader: FrameReader,
  events: ClientSocketEvents,
): ClientSocket {
  let first = true
  let memory: Uint8Array
  const socket = connectTcp({
    host,
    port,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: KEEP_ALIVE_MS,
    onread: {
      buffer: () => {
        memory = reader.target()
        return memory
      },
      callback: bytes => {
        try {
          if (first) {
            first = false
            if (memory[0] === ALERT && memory[1] === 3) {
              events.lost('invalid', 'the server speaks TLS only; give --tls-ca FILE')
              return false
            }
          }
          const goOn = reader.received(bytes)
          if (!goOn) socket.pause()
          return goOn
        } catch (error) {
          events.garbled(error)
          return false
        }
      },
    },
  })
  return { socket, secured: undefined }
}

function openTls(
  host: string,
  port: number,
  secureContext: ReturnType<NonNullable<ConnectionSecurity['tls']>>,
  reader: FrameReader,
  events: ClientSocketEvents,
): ClientSocket {
  // The certificate is checked against `host`; a name also goes to the server, which may have several certificates.
  const socket = connectTls({ host, port, secureContext, ...(isIP(host) ? {} : { servername: host }) })
  socket.setNoDelay(true)
  socket.setKeepAlive(true, KEEP_ALIVE_MS)
  socket.on('data', (chunk: Buffer) => {
    try {
      if (!reader.push(chunk)) socket.pause()
    } catch (error) {
      events.garbled(error)
    }
  })
  const { promise, resolve } = Promise.withResolvers<void>()
  socket.once('secureConnect', resolve)
  return { socket, secured: promise }
}

/** Until when the certificate is valid that the server showed, milliseconds since 1970; undefined over plain TCP. */
export function certificateEndMs(socket: Socket): number | undefined {
  if (!(socket instanceof TLSSocket)) return undefined
  const endMs = Date.parse(socket.getPeerCertificate()?.valid_to ?? '')
  return Number.isNaN(endMs) ? undefined : endMs
}

/** Codes of OpenSSL and Node.js for a server's certificate that does not hold. */
const CERTIFICATE_CODES =
  /^(?:CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|ERR_TLS_CERT_|HOSTNAME_MISMATCH|INVALID_(?:CA|PURPOSE)|ERROR_IN_CERT)/

function explain(error: NodeJS.ErrnoException, host: string): { kind: ErrorKind; why: string } {
  const code = error.code ?? ''
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return { kind: 'invalid', why: `the server's certificate does not name ${host}: ${error.message}` }
  if (code === 'CERT_HAS_EXPIRED' || code === 'CERT_NOT_YET_VALID')
    return {
      kind: 'invalid',
      why: `the server's certificate is not valid now: ${error.message} (${code}); renew it, or look at the clocks`,
    }
  if (CERTIFICATE_CODES.test(code))
    return {
      kind: 'invalid',
      // Node.js adds advice about its own options.
      why: `the server's certificate is not accepted: ${error.message.split(';')[0]} (${code}); is --tls-ca the CA that signed it?`,
    }
  if (/ALERT_(?:CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE)/.test(code))
    return {
      kind: 'invalid',
      why: 'the server wants a client certificate that its CA signed; give --tls-cert and --tls-key',
    }
  if (/ALERT_(?:UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_(?:EXPIRED|REVOKED|UNKNOWN)|DECRYPT_ERROR)/.test(code))
    return { kind: 'invalid', why: `the server does not accept the client certificate (${code})` }
  if (/WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|ERR_SSL_UNSUPPORTED_PROTOCOL/.test(code))
    return {
      kind: 'invalid',
      why: `the server does not speak TLS, or none that we accept (${code}); is it meant to be reached without --tls-ca?`,
    }
  const plain = PLAINLY[code]
  return { kind: 'retry', why: plain === undefined ? error.message : `${plain} (${code})` }
}

/** What the operating system says about addresses, and what to look at. */
const PLAINLY: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nobody listens there; is the server running, and are host and port right?',
  ECONNRESET: 'it hung up; is that a Palimpsest server, and does it run?',
  ETIMEDOUT: 'no answer from that host; is it up, and does a firewall let this port through?',
  EHOSTUNREACH: 'that host cannot be reached from here; is it up, and the network?',
  ENETUNREACH: 'that network cannot be reached from here',
  ENOTFOUND: 'there is no host of that name',
  EAI_AGAIN: 'the name of that host cannot be looked up at present',
}
