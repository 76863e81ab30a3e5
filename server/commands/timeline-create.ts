/** `palimpsest timeline create`: an empty timeline, for a writer that comes later. */
import { type Command, InvalidArgumentError } from 'commander'
import { type Lsn, type TimelineId, toLsn } from '../../protocol/ids.ts'
import { INNODB_PAGE_SIZES } from '../../protocol/messages.ts'
import { createTimeline, findTimeline, openServers } from '../attach/timeline-link.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { invalidError } from '../shared/errors.ts'
import {
  addClientOptions,
  type ClientOptions,
  lsnArgument,
  printJson,
  timelineNameArgument,
} from './common.ts'
import { newTimelineOption } from './datadir-common.ts'

/** Where the redo of every new InnoDB begins: behind the header and the two checkpoint blocks of its first log file (log0log.h). */
const FIRST_LSN = toLsn(12288)
/** And where it began in servers that were upgraded since. */
const LSN_LEAST = toLsn(8192)

interface Options extends ClientOptions {
  id?: TimelineId | undefined
  lsn?: Lsn
  pageSize: number
}

export function registerTimelineCreate(timeline: Command): void {
  addClientOptions(
    timeline
      .command('create')
      .argument('<new-name>', 'its name', timelineNameArgument)
      .description('make an empty timeline; "attach" and "import" do so by themselves')
      .addOption(newTimelineOption())
      .option(
        '--lsn <N>',
        `where its redo begins (default: ${FIRST_LSN}, as that of a new server)`,
        firstLsnArgument,
      )
      .option('--page-size <BYTES>', "the server's innodb_page_size", pageSizeArgument, 16384),
  ).action(async (name: string, options: Options) => {
    const security = openClientSecurity(options)
    const servers = await openServers({ connect: options.connect, security })
    try {
      if ((await findTimeline(servers.pageServer, name)) !== undefined)
        throw invalidError(`there is a timeline named ${name} already; choose another name or delete it`)
      const { timeline, startLsn } = await createTimeline(servers, {
        name,
        timeline: options.id ?? security?.onlyTimeline,
        startLsn: options.lsn ?? FIRST_LSN,
        innodbPageSize: options.pageSize,
        serverVersion: '',
      })
      if (options.json) printJson({ timeline, name, startLsn, innodbPageSize: options.pageSize })
      else console.log(`${name} (${timeline}) is made; its redo begins at LSN ${startLsn}`)
      // What an earlier attempt made at the safekeepers begins where that one said.
      if (options.lsn !== undefined && options.lsn !== startLsn)
        console.error(
          `warning: an earlier attempt to make it had chosen LSN ${startLsn}, and not ${options.lsn}; delete it if that will not do`,
        )
    } finally {
      servers.close()
    }
  })
}

function firstLsnArgument(text: string): Lsn {
  const lsn = lsnArgument(text)
  if (lsn < LSN_LEAST) throw new InvalidArgumentError(`no log of InnoDB begins before LSN ${LSN_LEAST}.`)
  return lsn
}

function pageSizeArgument(text: string): number {
  const size = INNODB_PAGE_SIZES.find(known => String(known) === text)
  if (size === undefined)
    throw new InvalidArgumentError(
      `"${text}" is none of InnoDB's page sizes: ${INNODB_PAGE_SIZES.join(', ')}.`,
    )
  return size
}
