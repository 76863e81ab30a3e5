/** `--admin-listen`, for every command that runs on: the admin port, and what its parts need to be seen there. */
import type { Command } from 'commander'
import type { Address } from '../../protocol/dial.ts'
import { AdminServer, Readiness } from '../shared/admin-http.ts'
import type { Log } from '../shared/log.ts'
import { Metrics, type MetricsSource, NO_METRICS } from '../shared/metrics.ts'
import { HelpGroup } from './command-line.ts'
import { addressArgument } from './common.ts'
import { packageVersion } from './version.ts'

export interface AdminCommandOptions {
  adminListen?: Address
  insecureAdminListen?: boolean
}

export function addAdminOption(command: Command): Command {
  return command
    .addOption(
      command
        .createOption(
          '--admin-listen <HOST:PORT>',
          'serve /metrics (Prometheus), /healthz and /readyz over HTTP; loopback addresses only, unless --insecure-admin-listen',
        )
        .argParser(addressArgument)
        .helpGroup(HelpGroup.MONITORING),
    )
    .addOption(
      command
        .createOption(
          '--insecure-admin-listen',
          'allow --admin-listen on an address that other machines can reach: whoever reaches it can read the metrics, which ' +
            'tell names and sizes, but no data',
        )
        .default(false)
        .helpGroup(HelpGroup.MONITORING),
    )
}

/** What a part is given to be watched by; the same whether or not anybody watches. */
export interface Watch extends MetricsSource {
  readonly readiness: Readiness
  close(): Promise<void>
}

/** Opens the admin port if one is asked for; before the parts start, so that /readyz says what is still missing. */
export async function openWatch(
  role: string,
  options: AdminCommandOptions & { id?: string | undefined },
  log: Log,
): Promise<Watch> {
  const readiness = new Readiness()
  if (options.adminListen === undefined)
    return { part: () => NO_METRICS, readiness, close: () => Promise.resolve() }
  const metrics = await Metrics.create()
  metrics.collectProcess()
  metrics
    .part('process')
    .sampledGauge('build_info', 'always 1; what runs here', ['role', 'node', 'version'], put =>
      put(1, role, options.id ?? '', packageVersion()),
    )
  const admin = await AdminServer.listen({
    ...options.adminListen,
    insecureListen: options.insecureAdminListen,
    metrics,
    readiness,
    log,
  })
  log.info({ address: admin.address }, 'admin port open')
  return { part: (name, fixed) => metrics.part(name, fixed), readiness, close: () => admin.close() }
}
