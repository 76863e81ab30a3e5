/**
 * What a cell knows: a pure function of its committed entries. Applying an entry costs the same however many timelines
 * there are. An entry whose conditions do not hold is *void*: it changes nothing, on every node alike.
 *
 * Commands are JSON, checked by the schema below before a leader proposes them and again when they come out of a log;
 * the snapshot is the whole state as JSON. docs/consensus.md has the rules, docs/log-format.md the files.
 */
import { z } from 'zod'
import type { ErrorKind } from '../../protocol/errors.ts'
import { checkTimelineName, type Lsn, type TimelineId, type WriterEpoch } from '../../protocol/ids.ts'
import type { WalParting } from '../../protocol/messages.ts'
import { corruptError } from '../shared/errors.ts'
import type { EntryId, LogIndex, Membership, NodeId, Term } from './core/types.ts'

export const CONSUMERS_MAX = 64
/** Timelines of a cell; tombstones are not counted. */
export const TIMELINES_MAX = 100_000
const NOTE_BYTES_MAX = 64 * 1024
const NOTES_MAX = 10_000
const NO_TIMELINE = '0'.repeat(32)
/** Writers that entries let in which were lost have an epoch below those that are given out after a recovery. */
export const RECOVERY_EPOCHS = 1_000_000

const lsn = z
  .int()
  .min(0)
  .transform(value => value as Lsn)
const timelineId = z
  .string()
  .regex(/^[0-9a-f]{32}$/)
  .transform(value => value as TimelineId)
const timelineName = z.string().refine(text => {
  try {
    checkTimelineName(text)
    return true
  } catch {
    return false
  }
})
/** Of writers, consumers, pins. */
const peerName = z.string().regex(/^[\x21-\x7e]{1,128}$/)
const nodeId = z.string().regex(/^[A-Za-z0-9_-]{1,32}\.[0-9a-f]{16}$/)
const address = z.string().max(300)
const zone = z.string().max(64)

const commandSchema = z.discriminatedUnion('do', [
  z.object({ do: z.literal('create'), timeline: timelineId, name: timelineName, startLsn: lsn }),
  /** `lsn`: the end of a chunk of the ancestor. */
  z.object({
    do: z.literal('branch'),
    timeline: timelineId,
    name: timelineName,
    ancestor: timelineId,
    lsn,
  }),
  z.object({ do: z.literal('rename'), timeline: timelineId, name: timelineName }),
  z.object({ do: z.literal('delete'), timeline: timelineId }),
  /** A new writer: the epoch grows by one. */
  z.object({ do: z.literal('open'), timeline: timelineId, writer: peerName }),
  /** What consumers have made durable: many in one entry. Void ones among them are passed over. */
  z.object({
    do: z.literal('trim'),
    trims: z.array(z.object({ timeline: timelineId, consumer: peerName, lsn })).max(10_000),
  }),
  z.object({ do: z.literal('dropConsumer'), timeline: timelineId, consumer: peerName }),
  /** Redo from `lsn` on stays until the pin is taken out (`lsn` null) or moved up. */
  z.object({ do: z.literal('pin'), timeline: timelineId, name: peerName, lsn: lsn.nullable() }),
  /** Where a node listens and in which zone it stands; `address` null: it is no member any more. */
  z.object({ do: z.literal('node'), id: nodeId, address: address.nullable(), zone }),
  /**
   * The cell was made of what one survivor, or a backup, had of another (`from`): there, more may have been acknowledged than stands before
   * this entry. docs/consensus.md, "After a lost majority".
   */
  z.object({
    do: z.literal('recovered'),
    how: z.enum(['survivor', 'backup']),
    from: z.string().regex(/^[0-9a-f]{32}$/),
    to: z.string().regex(/^[0-9a-f]{32}$/),
    wallTimeUs: z.int().min(0),
  }),
  /** Anything that must be agreed on and is nobody else's business (the backup's progress). null takes it out. */
  z.object({ do: z.literal('note'), key: peerName, value: z.json() }),
])
export type CellCommand = z.output<typeof commandSchema>

const membershipSchema = z.object({
  voters: z.array(nodeId).max(64),
  outgoing: z.array(nodeId).max(64).optional(),
  learners: z.array(nodeId).max(64),
})

const consumersSchema = z.array(z.tuple([peerName, lsn])).max(1000)
const timelineSchema = z.object({
  id: timelineId,
  name: z.string(),
  startLsn: lsn,
  endLsn: lsn,
  ancestor: z.object({ timeline: timelineId, heldFromLsn: lsn }).optional(),
  epoch: z
    .int()
    .min(0)
    .transform(value => value as WriterEpoch),
  writer: z.string(),
  lastWallTimeUs: z.number(),
  consumers: consumersSchema,
  pins: consumersSchema,
  partings: z.array(z.object({ lsn, cellId: z.string().regex(/^[0-9a-f]{32}$/) })).default([]),
})
const snapshotSchema = z.object({
  version: z.literal(1),
  index: z.int().min(0),
  term: z.int().min(0),
  membership: membershipSchema,
  nodes: z.array(z.object({ id: nodeId, address, zone })),
  timelines: z.array(timelineSchema),
  tombstones: z.array(timelineId),
  notes: z.array(z.tuple([z.string(), z.json()])),
})

export interface TimelineState {
  readonly id: TimelineId
  name: string
  readonly startLsn: Lsn
  /** End of the committed log; at least `startLsn`. */
  endLsn: Lsn
  /** `startLsn` is the branch point. `heldFromLsn`: the oldest LSN of the ancestor held when the branch was made. */
  readonly ancestor: { readonly timeline: TimelineId; readonly heldFromLsn: Lsn } | undefined
  /** Of the newest writer; 0 before the first. */
  epoch: WriterEpoch
  writer: string
  /** Of the newest chunk; 0 if there is none. */
  lastWallTimeUs: number
  /** Below which each needs nothing. */
  readonly consumers: Map<string, Lsn>
  readonly pins: Map<string, Lsn>
  /** Where the log ended each time a cell was made of another: who had more than that then, has another history. The oldest first. */
  readonly partings: WalParting[]
  /** Ids of those that branched off here. Follows from their `ancestor`. */
  readonly branches: Set<TimelineId>
}

/** The note that says what this cell was made of; see the command `recovered`. */
export const ORIGIN_NOTE = 'origin'
export interface CellOrigin {
  readonly how: 'survivor' | 'backup'
  /** Ids of the cell that was lost, and of the one that was made then. */
  readonly from: string
  readonly to: string
  readonly wallTimeUs: number
}
/** What writers from before are told has taken over. */
const RECOVERY_WRITERS = { survivor: 'member-recover', backup: 'backup-restore' } as const

/** What the cell was made of; undefined: it was seeded. */
export function cellOrigin(state: CellState): CellOrigin | undefined {
  return state.notes.get(ORIGIN_NOTE) as CellOrigin | undefined
}

export interface NodeInfo {
  /** HOST:PORT. */
  readonly address: string
  readonly zone: string
}

/** What applying an entry gave. Void: why, as the error that the one who asked for it gets. */
export type Applied =
  | { readonly void: false }
  | { readonly void: true; readonly kind: ErrorKind; readonly why: string; readonly lsn?: Lsn | undefined }

/** The part of a log entry that applying needs. */
export interface StateEntry {
  readonly index: LogIndex
  readonly term: Term
  readonly kind: 'noop' | 'membership' | 'command' | 'redo' | 'gap'
  readonly timeline: TimelineId | undefined
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  readonly payload: Uint8Array
}

const OK: Applied = { void: false }
const invalid = (why: string, at?: Lsn): Applied => ({ void: true, kind: 'invalid', why, lsn: at })

/** Throws an error of kind corrupt if the bytes are no command of ours. */
export function decodeCommand(payload: Uint8Array): CellCommand {
  const parsed = commandSchema.safeParse(parseJson(payload, 'command'))
  if (!parsed.success) throw corruptError(`a command of the cell's log: ${z.prettifyError(parsed.error)}`)
  return parsed.data
}

export function encodeCommand(command: CellCommand): Buffer {
  return Buffer.from(JSON.stringify(command))
}

export function decodeMembership(payload: Uint8Array): Membership {
  const parsed = membershipSchema.safeParse(parseJson(payload, 'membership'))
  if (!parsed.success) throw corruptError(`a membership of the cell's log: ${z.prettifyError(parsed.error)}`)
  return parsed.data
}

export function encodeMembership(membership: Membership): Buffer {
  const { voters, outgoing, learners } = membership
  return Buffer.from(JSON.stringify({ voters, ...(outgoing && { outgoing }), learners }))
}

function parseJson(payload: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(Buffer.from(payload.buffer, payload.byteOffset, payload.length).toString('utf8'))
  } catch (error) {
    throw corruptError(`a ${what} of the cell's log is no JSON: ${(error as Error).message}`)
  }
}

export class CellState {
  /** The last entry applied. */
  last: EntryId
  /** What the last entry applied said, if it was a command. */
  lastCommand: CellCommand | undefined
  /** Of the last membership entry applied; the core knows of newer ones. */
  membership: Membership
  readonly nodes = new Map<NodeId, NodeInfo>()
  readonly timelines = new Map<TimelineId, TimelineState>()
  /** Deleted for good: such an id never comes back. */
  readonly tombstones = new Set<TimelineId>()
  readonly notes = new Map<string, unknown>()
  private readonly byName = new Map<string, TimelineId>()

  constructor(
    membership: Membership = { voters: [], learners: [] },
    last: EntryId = { index: 0 as LogIndex, term: 0 as Term },
  ) {
    this.membership = membership
    this.last = last
  }

  named(name: string): TimelineState | undefined {
    const id = this.byName.get(name)
    return id === undefined ? undefined : this.timelines.get(id)
  }

  /** Takes the next entry in. Throws only if the entry is not the next one, or is no entry of ours (kind corrupt). */
  apply(entry: StateEntry): Applied {
    if (entry.index !== this.last.index + 1)
      throw new Error(`entry ${entry.index} does not follow ${this.last.index}`)
    const result = this.take(entry)
    this.last = { index: entry.index, term: entry.term }
    return result
  }

  private take(entry: StateEntry): Applied {
    this.lastCommand = undefined
    switch (entry.kind) {
      case 'noop':
        return OK
      case 'membership':
        this.membership = decodeMembership(entry.payload)
        return OK
      case 'redo':
      case 'gap':
        return this.takeRedo(entry)
      case 'command':
        this.lastCommand = decodeCommand(entry.payload)
        return this.takeCommand(this.lastCommand)
    }
  }

  private takeRedo({ timeline: id, epoch, beginLsn, endLsn, wallTimeUs }: StateEntry): Applied {
    const timeline = this.timelines.get(id!)
    if (timeline === undefined) return this.unknown(id!)
    const wrong = appendFault(timeline, timeline.epoch, timeline.endLsn, epoch, beginLsn)
    if (wrong !== undefined) return wrong
    timeline.endLsn = endLsn
    timeline.lastWallTimeUs = wallTimeUs
    return OK
  }

  /** What would become of a command now; nothing changes. */
  check(command: CellCommand): Applied {
    switch (command.do) {
      case 'create':
      case 'branch': {
        // It stands for "none" on the wire and in the log.
        if (command.timeline === NO_TIMELINE) return invalid(`a timeline's id cannot be all zeros`)
        if (this.tombstones.has(command.timeline))
          return invalid(`timeline ${command.timeline} was deleted; take a new id`)
        const known = this.timelines.get(command.timeline)
        const startLsn = command.do === 'create' ? command.startLsn : command.lsn
        if (known !== undefined) {
          const ancestor = command.do === 'create' ? undefined : command.ancestor
          if (
            known.name === command.name &&
            known.startLsn === startLsn &&
            known.ancestor?.timeline === ancestor
          )
            return OK
          return invalid(`timeline ${known.id} exists as "${known.name}" from LSN ${known.startLsn}`)
        }
        if (this.byName.has(command.name))
          return invalid(`there is a timeline named "${command.name}"; choose another name or delete it`)
        if (this.timelines.size >= TIMELINES_MAX)
          return invalid(`the cell has ${TIMELINES_MAX} timelines; delete some, or use a second cell`)
        if (command.do === 'create') return OK
        const ancestor = this.timelines.get(command.ancestor)
        if (ancestor === undefined) return this.unknown(command.ancestor)
        if (command.lsn > ancestor.endLsn)
          return {
            void: true,
            kind: 'refresh',
            why: `cannot branch at LSN ${command.lsn}: the log of "${ancestor.name}" ends at ${ancestor.endLsn}`,
            lsn: ancestor.endLsn,
          }
        if (command.lsn < ancestor.startLsn)
          return invalid(
            `cannot branch at LSN ${command.lsn}: "${ancestor.name}" begins at ${ancestor.startLsn}` +
              (ancestor.ancestor ? '; branch off its ancestor' : ''),
            ancestor.startLsn,
          )
        return OK
      }
      case 'rename': {
        const timeline = this.timelines.get(command.timeline)
        if (timeline === undefined) return this.unknown(command.timeline)
        const holder = this.byName.get(command.name)
        if (holder !== undefined && holder !== command.timeline)
          return invalid(`there is a timeline named "${command.name}"; choose another name or delete it`)
        return OK
      }
      case 'delete': {
        const timeline = this.timelines.get(command.timeline)
        if (timeline === undefined)
          return this.tombstones.has(command.timeline) ? OK : this.unknown(command.timeline)
        if (timeline.branches.size > 0) {
          const [first] = timeline.branches
          return invalid(
            `"${timeline.name}" has ${timeline.branches.size} branches ("${this.timelines.get(first!)?.name}"); delete them first`,
          )
        }
        return OK
      }
      case 'pin': {
        const timeline = this.timelines.get(command.timeline)
        if (timeline === undefined) return this.unknown(command.timeline)
        if (command.lsn !== null && !timeline.pins.has(command.name) && timeline.pins.size >= CONSUMERS_MAX)
          return invalid(`"${timeline.name}" has ${CONSUMERS_MAX} pins already`)
        return OK
      }
      case 'open':
      case 'dropConsumer':
        return this.timelines.has(command.timeline) ? OK : this.unknown(command.timeline)
      case 'trim':
      case 'node':
      case 'recovered':
        return OK
      case 'note':
        if (command.value !== null && !this.notes.has(command.key) && this.notes.size >= NOTES_MAX)
          return invalid(`there are ${NOTES_MAX} notes already`)
        if (JSON.stringify(command.value).length > NOTE_BYTES_MAX)
          return invalid(`note ${command.key} is longer than ${NOTE_BYTES_MAX} characters`)
        return OK
    }
  }

  private takeCommand(command: CellCommand): Applied {
    const verdict = this.check(command)
    if (verdict.void) return verdict
    switch (command.do) {
      case 'create':
        if (!this.timelines.has(command.timeline)) this.add(command.timeline, command.name, command.startLsn)
        return OK
      case 'branch': {
        if (this.timelines.has(command.timeline)) return OK
        const ancestor = this.timelines.get(command.ancestor)!
        this.add(command.timeline, command.name, command.lsn, {
          timeline: command.ancestor,
          heldFromLsn: this.neededFrom(ancestor),
        })
        return OK
      }
      case 'rename': {
        const timeline = this.timelines.get(command.timeline)!
        this.byName.delete(timeline.name)
        timeline.name = command.name
        this.byName.set(command.name, timeline.id)
        return OK
      }
      case 'delete': {
        const timeline = this.timelines.get(command.timeline)
        if (timeline === undefined) return OK
        this.timelines.delete(timeline.id)
        this.byName.delete(timeline.name)
        this.tombstones.add(timeline.id)
        if (timeline.ancestor) this.timelines.get(timeline.ancestor.timeline)?.branches.delete(timeline.id)
        return OK
      }
      case 'open': {
        const timeline = this.timelines.get(command.timeline)!
        timeline.epoch = (timeline.epoch + 1) as WriterEpoch
        timeline.writer = command.writer
        return OK
      }
      case 'trim': {
        let verdict: Applied = OK
        for (const { timeline: id, consumer, lsn } of command.trims) {
          const wrong = this.trim(id, consumer, lsn)
          if (wrong.void) verdict = wrong
        }
        // Alone, the one who asked wants to know; among others, the rest counts.
        return command.trims.length === 1 ? verdict : OK
      }
      case 'dropConsumer':
        this.timelines.get(command.timeline)!.consumers.delete(command.consumer)
        return OK
      case 'pin': {
        const { pins } = this.timelines.get(command.timeline)!
        if (command.lsn === null) pins.delete(command.name)
        else pins.set(command.name, command.lsn)
        return OK
      }
      case 'node':
        if (command.address === null) this.nodes.delete(command.id)
        else this.nodes.set(command.id, { address: command.address, zone: command.zone })
        return OK
      case 'recovered': {
        const { do: _, ...origin } = command
        for (const timeline of this.timelines.values()) {
          timeline.epoch = (timeline.epoch + RECOVERY_EPOCHS) as WriterEpoch
          timeline.writer = RECOVERY_WRITERS[command.how]
          timeline.partings.push({ lsn: timeline.endLsn, cellId: command.to })
        }
        this.notes.set(ORIGIN_NOTE, origin)
        return OK
      }
      case 'note':
        if (command.value === null) this.notes.delete(command.key)
        else this.notes.set(command.key, command.value)
        return OK
    }
  }

  /** Why a trim is refused; the same text for the leader's look ahead. */
  trimFault(id: TimelineId, consumer: string, lsn: Lsn): Applied {
    const timeline = this.timelines.get(id)
    if (timeline === undefined) return this.unknown(id)
    if (lsn > timeline.endLsn)
      return invalid(`${consumer} claims ${lsn} durable, the log ends at ${timeline.endLsn}`, lsn)
    if (!timeline.consumers.has(consumer) && timeline.consumers.size >= CONSUMERS_MAX)
      return invalid(`"${timeline.name}" has ${CONSUMERS_MAX} consumers already`)
    return OK
  }

  private trim(id: TimelineId, consumer: string, lsn: Lsn): Applied {
    const wrong = this.trimFault(id, consumer, lsn)
    if (wrong.void) return wrong
    this.timelines.get(id)!.consumers.set(consumer, lsn)
    return OK
  }

  /**
   * Redo of the timeline from there on must be kept; its end if none. While it has no consumer, all of it. A branch
   * needs its ancestor's redo below the branch point until its own consumers are beyond that.
   */
  neededFrom(timeline: TimelineState): Lsn {
    let lowest: number = timeline.endLsn
    if (timeline.consumers.size === 0) lowest = timeline.startLsn
    else for (const durable of timeline.consumers.values()) if (durable < lowest) lowest = durable
    for (const pinned of timeline.pins.values()) if (pinned < lowest) lowest = pinned
    for (const id of timeline.branches) {
      const branch = this.timelines.get(id)!
      const needed = branch.consumers.size === 0 ? branch.ancestor!.heldFromLsn : this.neededFrom(branch)
      if (needed < branch.startLsn && needed < lowest) lowest = needed
    }
    // A branch's consumers may still be at redo of its ancestor: that is the ancestor's to keep.
    return lowest as Lsn
  }

  /** Oldest LSN of the timeline's own log that is promised to be there. */
  beginLsn(timeline: TimelineState): Lsn {
    return Math.max(this.neededFrom(timeline), timeline.startLsn) as Lsn
  }

  private add(
    id: TimelineId,
    name: string,
    startLsn: Lsn,
    ancestor: TimelineState['ancestor'] = undefined,
  ): TimelineState {
    const timeline: TimelineState = {
      id,
      name,
      startLsn,
      endLsn: startLsn,
      ancestor,
      epoch: 0 as WriterEpoch,
      writer: '',
      lastWallTimeUs: 0,
      consumers: new Map(),
      pins: new Map(),
      partings: [],
      branches: new Set(),
    }
    this.timelines.set(id, timeline)
    this.byName.set(name, id)
    if (ancestor) this.timelines.get(ancestor.timeline)?.branches.add(id)
    return timeline
  }

  /** The error of whoever names a timeline that is not there. */
  unknown(id: TimelineId): Extract<Applied, { void: true }> {
    const why = this.tombstones.has(id)
      ? `timeline ${id} was deleted`
      : `this safekeeper has no timeline ${id}`
    return { void: true, kind: 'invalid', why }
  }

  encode(): Buffer {
    const { last, membership } = this
    return Buffer.from(
      JSON.stringify({
        version: 1,
        index: last.index,
        term: last.term,
        membership,
        nodes: [...this.nodes].map(([id, info]) => ({ id, ...info })),
        timelines: [...this.timelines.values()].map(
          ({ branches: _, consumers, pins, partings, ...rest }) => ({
            ...rest,
            consumers: [...consumers],
            pins: [...pins],
            ...(partings.length > 0 && { partings }),
          }),
        ),
        tombstones: [...this.tombstones],
        notes: [...this.notes],
      }),
    )
  }

  /** Throws an error of kind corrupt. */
  static decode(bytes: Uint8Array): CellState {
    const parsed = snapshotSchema.safeParse(parseJson(bytes, 'snapshot'))
    if (!parsed.success)
      throw corruptError(`a snapshot of the cell's state: ${z.prettifyError(parsed.error)}`)
    const { index, term, membership, nodes, timelines, tombstones, notes } = parsed.data
    const state = new CellState(membership, { index: index as LogIndex, term: term as Term })
    for (const { id, address, zone } of nodes) state.nodes.set(id, { address, zone })
    for (const saved of timelines) {
      const timeline = state.add(saved.id, saved.name, saved.startLsn, saved.ancestor)
      timeline.endLsn = saved.endLsn
      timeline.epoch = saved.epoch
      timeline.writer = saved.writer
      timeline.lastWallTimeUs = saved.lastWallTimeUs
      for (const [name, at] of saved.consumers) timeline.consumers.set(name, at)
      for (const [name, at] of saved.pins) timeline.pins.set(name, at)
      timeline.partings.push(...saved.partings)
    }
    for (const { id, ancestor } of state.timelines.values())
      if (ancestor) state.timelines.get(ancestor.timeline)?.branches.add(id)
    for (const id of tombstones) state.tombstones.add(id)
    for (const [key, value] of notes) state.notes.set(key, value)
    return state
  }
}

/** Why an append by `epoch` at `beginLsn` is refused by a log that is at `currentEpoch` and `endLsn`. */
export function appendFault(
  timeline: Pick<TimelineState, 'name' | 'writer'>,
  currentEpoch: WriterEpoch,
  endLsn: Lsn,
  epoch: WriterEpoch,
  beginLsn: Lsn,
): Extract<Applied, { void: true }> | undefined {
  const { name } = timeline
  if (epoch < currentEpoch)
    return {
      void: true,
      kind: 'fenced',
      why: `"${name}" has a newer writer, ${timeline.writer} (epoch ${currentEpoch}, yours is ${epoch}): stop`,
    }
  if (epoch > currentEpoch)
    return {
      void: true,
      kind: 'invalid',
      why: `epoch ${epoch} of "${name}" was never given out (it is ${currentEpoch})`,
    }
  if (beginLsn !== endLsn)
    return {
      void: true,
      kind: 'refresh',
      why: `append at LSN ${beginLsn}, but the log of "${name}" ends at ${endLsn}: open it again and go on there`,
      lsn: endLsn,
    }
  return undefined
}
