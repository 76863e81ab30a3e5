/** What the server commands share: options, the listener, and a clean stop at SIGTERM or SIGINT. */
import type { Command } from 'commander'
import type { Address } from '../../protocol/dial.ts'
import {
  type ClientSecurity,
  type ClientSecurityFiles,
  openClientSecurity,
} from '../shared/client-security.ts'
import { ExpiryWatch } from '../shared/expiry.ts'
import { Listener } from '../shared/listener.ts'
import { createLog, type Log } from '../shared/log.ts'
import { ServerSecurity, type ServerSecurityFiles } from '../shared/server-security.ts'
import { type AdminCommandOptions, addAdminOption, openWatch, type Watch } from './admin.ts'
import { HelpGroup } from './command-line.ts'
import {
  addCertificateOptions,
  addClientSecurityOptions,
  addressArgument,
  DEFAULT_ADDRESS,
  optionOf,
  pathArgument,
} from './common.ts'
import { makeDataFolder } from './data-folder.ts'
import { packageVersion } from './version.ts'

export interface ServeOptions extends AdminCommandOptions, ClientSecurityFiles, ServerSecurityFiles {
  id?: string
  data: string
  listen: Address
  logLevel: string
  insecureListen: boolean
}

export function addServeOptions(command: Command, dataDefault?: string): Command {
  const data = command
    .createOption('--data <DIR>', 'where this server keeps its files; made if there is none')
    .argParser(pathArgument)
  if (dataDefault === undefined) data.makeOptionMandatory()
  else data.default(dataDefault)
  command
    .addOption(data)
    .addOption(
      command
        .createOption('--listen <HOST:PORT>', 'address to listen on')
        .argParser(addressArgument)
        .default(addressArgument(DEFAULT_ADDRESS), DEFAULT_ADDRESS),
    )
    .addOption(
      command
        .createOption('--log-level <LEVEL>', 'logs are JSON lines on stderr')
        .choices(['debug', 'info', 'warn', 'error', 'silent'])
        .default('info'),
    )
  return addSecurityOptions(addAdminOption(command))
}

function addSecurityOptions(command: Command): Command {
  const option = optionOf(command)
  addCertificateOptions(command)
  option('--tls-client-ca <FILE>', 'clients must show a certificate of this CA', 'PALIMPSEST_TLS_CLIENT_CA')
  option('--token-keys <FILE>', 'public keys of signed tokens (JSON Web Key Set)', 'PALIMPSEST_TOKEN_KEYS')
  option('--api-keys <FILE>', 'API keys, a line each: name scopes sha256', 'PALIMPSEST_API_KEYS')
  return addClientSecurityOptions(command).addOption(
    command
      .createOption(
        '--insecure-listen',
        'allow an address that other machines can reach although TLS or proof of identity is missing. Without TLS, ' +
          'whoever is on the way can read and change data and tokens; without tokens or client certificates, whoever ' +
          'reaches the port can read and write everything',
      )
      .default(false)
      .helpGroup(HelpGroup.SECURITY),
  )
}

/**
 * What this server brings to others that it dials: its own certificate, a CA to know them by, a token. Without a CA it
 * speaks plain TCP to them, even if it takes TLS from its clients.
 */
function outgoingSecurity(options: ServeOptions, log: Log): ClientSecurity | undefined {
  const { tokenFile, insecureToken, tlsCa, tlsCert, tlsKey } = options
  return openClientSecurity(
    tlsCa === undefined ? { tokenFile, insecureToken } : { tokenFile, insecureToken, tlsCa, tlsCert, tlsKey },
    problem => log.warn(problem),
  )
}

/** A part of a server that runs until it is closed. One that cannot go on (a failed fsync) ends the process itself. */
export interface Part {
  /** While clients and peers are still connected: what makes the end easier for them. */
  retire?(): Promise<void>
  close(): Promise<void>
}

/** Starts a server's parts. `security`: what it brings to others that it dials. */
type Start = (
  listener: Listener,
  log: Log,
  parts: Part[],
  watch: Watch,
  security: ClientSecurity | undefined,
) => Promise<void>

/**
 * Listens, starts the parts in order, prints `ready HOST:PORT`, waits for SIGTERM or SIGINT (a second one ends at
 * once), and closes the parts in reverse order.
 */
export async function serve(name: string, options: ServeOptions, start: Start): Promise<void> {
  makeDataFolder(options.data)
  const log = createLog({ name, level: options.logLevel, node: options.id })
  const watch = await openWatch(name, options, log)
  try {
    await serveWatched(options, log, watch, start)
  } finally {
    await watch.close()
  }
}

async function serveWatched(options: ServeOptions, log: Log, watch: Watch, start: Start): Promise<void> {
  const listening = watch.readiness.pending('listener', 'not listening yet')
  const recovered = watch.readiness.pending('recovery', 'what is on disk is still being read')
  const parts: Part[] = []
  const security = await ServerSecurity.open(options, log)
  const outgoing = outgoingSecurity(options, log)
  const expiry = new ExpiryWatch(
    () => [...security.expiring, ...(outgoing?.expiring ?? [])],
    log,
    watch.part('process'),
  )
  const reload = () => void security.reload()
  process.on('SIGHUP', reload)
  const listener = new Listener({
    ...options.listen,
    log,
    nodeId: options.id,
    security,
    insecureListen: options.insecureListen,
    software: `palimpsest ${packageVersion()}`,
    metrics: watch.part('listener'),
  })
  try {
    await listener.listen()
    listening()
    await start(listener, log, parts, watch, outgoing)
    recovered()
    process.stdout.write(`ready ${listener.address}\n`)
    const signal = await stopSignal()
    // From here on others should be asked.
    watch.readiness.add('stopping', () => 'it was told to stop')
    log.info({ signal }, 'stopping')
    for (const part of parts) await part.retire?.()
  } finally {
    await listener.close()
    for (const part of parts.reverse()) await part.close()
    process.off('SIGHUP', reload)
    expiry.close()
    security.close()
  }
}

function stopSignal(): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve(signal))
  return promise
}
