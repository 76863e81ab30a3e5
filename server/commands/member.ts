/** `palimpsest member …`: who is in a cell of safekeepers. */
import { type Command, InvalidArgumentError } from 'commander'
import { formatAddress, parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, checkNodeName, MessageType, type Replies } from '../../protocol/messages.ts'
import { askLeader } from '../shared/cell-client.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { formatRoughly } from '../shared/format.ts'
import { cellJson } from './cell-status.ts'
import { addClientOptions, type ClientOptions, printJson } from './common.ts'
import { interruptible, orAborted } from './interruption.ts'
import { leaderStatus, nameOf } from './leader-status.ts'
import { registerMemberRecover } from './member-recover.ts'
import { plainTable } from './table.ts'

/** A change waits until the node has caught up, however much there is. */
const CHANGE_MS = 24 * 3600_000

type MemberRequest = Replies['MemberAdd' | 'MemberRemove' | 'MemberReplace' | 'TransferLeadership'][0]

export function registerMember(program: Command): void {
  const member = program
    .command('member')
    .description('list, add, remove or replace the safekeepers of a cell')
  registerMemberRecover(member)

  addClientOptions(member.command('list').description('the members, as the leader knows them')).action(
    async (options: ClientOptions) => {
      const status = await leaderStatus(options)
      if (options.json) printJson(cellJson(status))
      else if (status.members.length === 0)
        console.log(
          `${nameOf(status.nodeId)} is in no cell yet: it waits for the others of its --peers, or for "palimpsest member add"; its log says for which`,
        )
      else console.log(memberTable(status))
    },
  )

  addClientOptions(
    member
      .command('add')
      .argument('<name=host:port>', 'its --id, and where it listens', nodeArgument)
      .description(
        'add a safekeeper that runs with --join there; it receives all that is held before it votes',
      ),
  ).action(async ({ name, address }: NamedNode, options: ClientOptions) => {
    await change(options, { type: MessageType.MemberAdd, name, address })
    done(options, `${name} is a member`, { added: name })
  })

  addClientOptions(member.command('remove <name>').description('take a safekeeper out')).action(
    async (name: string, options: ClientOptions) => {
      // To one that was removed before the cell says yes as well: the request may be made again after a connection is lost.
      const { members } = await leaderStatus(options)
      await change(options, { type: MessageType.MemberRemove, name })
      const was = members.some(({ nodeId }) => nameOf(nodeId) === name)
      const told = was ? `${name} is no member any more` : `${name} was removed before; it is no member`
      done(options, `${told}; its process can be stopped`, { removed: name, before: !was })
    },
  )

  addClientOptions(
    member
      .command('replace')
      .argument('<old>', 'the one that goes')
      .argument('<name=host:port>', 'the --id of the one that comes, and where it listens', nodeArgument)
      .description('put a safekeeper that runs with --join in the place of another, in one step'),
  ).action(async (old: string, { name, address }: NamedNode, options: ClientOptions) => {
    await change(options, { type: MessageType.MemberReplace, old, name, address })
    done(options, `${name} is in the place of ${old}`, { replaced: old, by: name })
  })

  addClientOptions(
    member.command('transfer <name>').description('make another member the leader, before maintenance'),
  ).action(async (name: string, options: ClientOptions) => {
    await change(options, { type: MessageType.TransferLeadership, name })
    done(options, `${name} leads`, { leader: name })
  })
}

interface NamedNode {
  readonly name: string
  readonly address: string
}

function nodeArgument(text: string): NamedNode {
  const at = text.indexOf('=')
  try {
    if (at < 0) throw new Error(`"${text}" is not NAME=HOST:PORT`)
    return {
      name: checkNodeName(text.slice(0, at)),
      address: formatAddress(parseAddress(text.slice(at + 1))),
    }
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

async function change(options: ClientOptions, message: MemberRequest): Promise<void> {
  const dial = { security: openClientSecurity(options) }
  await interruptible(
    'the cell may go on with the change: "palimpsest member list" shows it, and the same command again waits for it',
    signal =>
      orAborted(
        signal,
        askLeader(options.connect, message, { dial, request: { deadlineMs: CHANGE_MS, signal } }),
      ),
  )
}

function done(options: ClientOptions, text: string, json: object): void {
  if (options.json) printJson(json)
  else console.log(text)
}

export function memberTable(status: CellStatusReply): string {
  return plainTable(
    [
      { head: 'member' },
      { head: 'address' },
      { head: 'kind' },
      { head: 'log behind', align: 'right' },
      { head: 'last heard', align: 'right' },
      { head: 'zone' },
    ],
    status.members.map(({ nodeId, address, zone, kind, matchIndex, silentMs }) => [
      nameOf(nodeId),
      address,
      nodeId === status.leader ? 'leader' : kind,
      matchIndex > 0 ? `${Math.max(0, status.lastIndex - matchIndex)} entries` : undefined,
      silentMs === undefined ? 'never' : silentMs < 1000 ? 'now' : `${formatRoughly(silentMs)} ago`,
      zone,
    ]),
  )
}
