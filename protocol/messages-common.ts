/** Messages of every connection: hello, ping, cancel, plain success and the error. */
import { type Codec, TEXT_BYTES_MAX } from './codec.ts'
import { ERROR_KINDS, type ErrorKind } from './errors.ts'
import type { Lsn } from './ids.ts'
import { MessageType } from './message-types.ts'

export const PROTOCOL_VERSION = 1
/** "PLMP" in ASCII, read as a little-endian u32. */
export const HELLO_MAGIC = 0x504d4c50

/** Feature bits of Hello; a feature is on if both sides offered it. */
export const Feature = {
  /** Bulks may be compressed with zstd (frame flag BULK_ZSTD). */
  ZSTD: 1,
  /** What is another server's business is answered with Redirect; without it, by ErrorReply of kind refresh. */
  REDIRECT: 2,
  /** What is another server's business is passed on to it; goes before REDIRECT. */
  FORWARD: 4,
} as const

/** What a server does; a bit mask in HelloOk. */
export const Role = { SAFEKEEPER: 1, PAGESERVER: 2 } as const
export type Role = (typeof Role)[keyof typeof Role]

export function roleNames(roles: number): string {
  const names = []
  if (roles & Role.SAFEKEEPER) names.push('safekeeper')
  if (roles & Role.PAGESERVER) names.push('pageserver')
  return names.join('+') || 'none'
}

/**
 * The first frame of the client.
 *
 *     u32 magic "PLMP" | u16 versionMin | u16 versionMax | u32 features | u32 frameBytesMax
 *     string token (empty: none) | string software
 */
export interface Hello {
  readonly type: typeof MessageType.Hello
  readonly versionMin: number
  readonly versionMax: number
  readonly features: number
  /** Largest frame that the client is ready to receive, in bytes. */
  readonly frameBytesMax: number
  readonly token: string
  readonly software: string
}

export const HelloCodec: Codec<Hello> = {
  type: MessageType.Hello,
  name: 'Hello',
  bulk: 'none',
  encode(w, m) {
    w.u32(HELLO_MAGIC)
    w.u16(m.versionMin)
    w.u16(m.versionMax)
    w.u32(m.features)
    w.u32(m.frameBytesMax)
    w.string(m.token, 'token', TEXT_BYTES_MAX)
    w.string(m.software, 'software', 256)
  },
  decode(r) {
    const magic = r.u32('magic')
    if (magic !== HELLO_MAGIC) r.fail(`magic 0x${magic.toString(16)} is not Palimpsest's`)
    const versionMin = r.u16('versionMin')
    const versionMax = r.u16('versionMax')
    if (versionMin > versionMax) r.fail(`versions ${versionMin}..${versionMax} are no range`)
    return {
      type: MessageType.Hello,
      versionMin,
      versionMax,
      features: r.u32('features'),
      frameBytesMax: r.u32('frameBytesMax'),
      token: r.string('token', TEXT_BYTES_MAX),
      software: r.text('software', 256),
    }
  },
}

/**
 * The server's answer.
 *
 *     u16 version | u16 0 | u32 features | u32 frameBytesMax | u32 roles | string nodeId | string software
 */
export interface HelloOk {
  readonly type: typeof MessageType.HelloOk
  /** The version that both will speak. */
  readonly version: number
  /** The features that both have. */
  readonly features: number
  /** Largest frame that the server is ready to receive, in bytes. */
  readonly frameBytesMax: number
  readonly roles: number
  readonly nodeId: string
  readonly software: string
}

export const HelloOkCodec: Codec<HelloOk> = {
  type: MessageType.HelloOk,
  name: 'HelloOk',
  bulk: 'none',
  encode(w, m) {
    w.u16(m.version)
    w.u16(0)
    w.u32(m.features)
    w.u32(m.frameBytesMax)
    w.u32(m.roles)
    w.string(m.nodeId, 'nodeId', 128)
    w.string(m.software, 'software', 256)
  },
  decode(r) {
    const version = r.u16('version')
    r.zeros(2)
    return {
      type: MessageType.HelloOk,
      version,
      features: r.u32('features'),
      frameBytesMax: r.u32('frameBytesMax'),
      roles: r.u32('roles'),
      nodeId: r.text('nodeId', 128),
      software: r.text('software', 256),
    }
  },
}

/** Are you there? No fields. Answered by Pong. */
export interface Ping {
  readonly type: typeof MessageType.Ping
}

export const PingCodec: Codec<Ping> = {
  type: MessageType.Ping,
  name: 'Ping',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.Ping }),
}

/** `u64 wallTimeUs`: the server's clock, microseconds since 1970. */
export interface Pong {
  readonly type: typeof MessageType.Pong
  readonly wallTimeUs: number
}

export const PongCodec: Codec<Pong> = {
  type: MessageType.Pong,
  name: 'Pong',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.wallTimeUs)
  },
  decode: r => ({ type: MessageType.Pong, wallTimeUs: r.u64('wallTimeUs') }),
}

/**
 * Asks the server to end the request whose id is in this frame's header; that request then ends with its last frame or
 * with an error of kind retry. Cancel has no fields and no answer of its own.
 */
export interface Cancel {
  readonly type: typeof MessageType.Cancel
}

export const CancelCodec: Codec<Cancel> = {
  type: MessageType.Cancel,
  name: 'Cancel',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.Cancel }),
}

/** Done, nothing to tell. No fields. */
export interface Ok {
  readonly type: typeof MessageType.Ok
}

export const OkCodec: Codec<Ok> = {
  type: MessageType.Ok,
  name: 'Ok',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.Ok }),
}

/**
 * The one error; its frame has flags REPLY and ERROR.
 *
 *     u16 kind (1 retry, 2 refresh, 3 fenced, 4 corrupt, 5 invalid, 6 internal)
 *     u16 has LSN (0 or 1) | u32 0 | u64 LSN (0 if it has none) | string message
 */
export interface ErrorReply {
  readonly type: typeof MessageType.ErrorReply
  readonly kind: ErrorKind
  readonly lsn: Lsn | undefined
  readonly message: string
}

export const ErrorReplyCodec: Codec<ErrorReply> = {
  type: MessageType.ErrorReply,
  name: 'ErrorReply',
  bulk: 'none',
  encode(w, m) {
    w.u16(ERROR_KINDS.indexOf(m.kind) + 1)
    w.u16(m.lsn === undefined ? 0 : 1)
    w.u32(0)
    w.u64(m.lsn ?? 0)
    w.string(m.message, 'message', TEXT_BYTES_MAX)
  },
  decode(r) {
    const number = r.u16('kind')
    const kind = ERROR_KINDS[number - 1] ?? r.fail(`error kind ${number} is unknown`)
    const hasLsn = r.u16('has LSN')
    if (hasLsn > 1) r.fail(`has LSN ${hasLsn} is neither 0 nor 1`)
    r.zeros(4)
    const lsn = r.lsn()
    if (hasLsn === 0 && lsn !== 0) r.fail('an LSN where there is none')
    return {
      type: MessageType.ErrorReply,
      kind,
      lsn: hasLsn === 1 ? lsn : undefined,
      message: r.text('message', TEXT_BYTES_MAX),
    }
  },
}

/**
 * An error of kind refresh, for clients with Feature.REDIRECT: another server is the one to ask. Flags as ErrorReply's.
 *
 *     string address (HOST:PORT) | string message
 */
export interface Redirect {
  readonly type: typeof MessageType.Redirect
  readonly address: string
  readonly message: string
}

export const RedirectCodec: Codec<Redirect> = {
  type: MessageType.Redirect,
  name: 'Redirect',
  bulk: 'none',
  encode(w, m) {
    w.string(m.address, 'address', 300)
    w.string(m.message, 'message', TEXT_BYTES_MAX)
  },
  decode: r => ({
    type: MessageType.Redirect,
    address: r.text('address', 300),
    message: r.text('message', TEXT_BYTES_MAX),
  }),
}
