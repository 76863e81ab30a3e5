/** The body of `npm run chaos` (scripts/chaos.js). */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { becomeChild } from '../../scripts/lib/node.js'
import { mariadbSkip } from '../support/mariadb.ts'
import { runChaos } from './chaos.ts'
import { FAULTS, type FaultName } from './faults.ts'
import { command } from './process.ts'

const HELP = `npm run chaos -- [OPTIONS]

Three safekeepers, a page server, MariaDB with palimpsest attach, and a synthetic writer, all of them real processes, over
TLS; faults one after the other. The last line says how it went; the exit code is 0 if nothing was wrong.

  --minutes N     faults for so long (default 5)
  --seed S        of the schedule and the data (default: by the clock)
  --faults LIST   of ${FAULTS.join(',')} (default: all)
                  partition and disk need root on Linux (network and mount namespaces, loop mounts)
  --rate MIB      MiB/s of the synthetic writer (default 0: as fast as it goes)
  --keep          keep folder and logs even if all was well
  --help          this text

A schedule is random by its seed, but for what the machine's own timing decides: who leads, how far each one got.
`

/** Set where this process is inside of its namespaces. */
const INSIDE = 'PALIMPSEST_CHAOS_INSIDE'
const NEEDS_NAMESPACES: readonly FaultName[] = ['partition', 'disk']

function readOptions(args: string[]) {
  const { values } = parseArgs({
    args,
    options: {
      minutes: { type: 'string', default: '5' },
      seed: { type: 'string' },
      faults: { type: 'string', default: FAULTS.join(',') },
      rate: { type: 'string', default: '0' },
      keep: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const number = (name: 'minutes' | 'rate' | 'seed', text: string): number => {
    const value = Number(text)
    if (!(value >= 0 && value < 2 ** 32)) throw new TypeError(`--${name} must be a number, not ${text}`)
    return value
  }
  const faults = values.faults.split(',').map(name => {
    const known = FAULTS.find(fault => fault === name.trim())
    if (known === undefined)
      throw new TypeError(`there is no fault "${name}"; there are ${FAULTS.join(', ')}`)
    return known
  })
  return {
    help: values.help,
    keep: values.keep,
    faults,
    minutes: number('minutes', values.minutes),
    bytesPerSecond: number('rate', values.rate) * 1024 * 1024,
    seed: Math.floor(number('seed', values.seed ?? String(Date.now() % 1_000_000))),
  }
}

/** Returns the exit code: 0 nothing wrong, 1 something lost, 2 wrong usage. */
export async function main(args: string[]): Promise<number> {
  let options: ReturnType<typeof readOptions>
  try {
    options = readOptions(args)
  } catch (error) {
    if (!(error instanceof TypeError)) throw error
    console.error(error.message)
    return 2
  }
  if (options.help) {
    console.log(HELP)
    return 0
  }
  const skip = mariadbSkip()
  if (skip) {
    console.error(skip)
    return 2
  }
  const isolated = process.env[INSIDE] !== undefined
  if (!isolated && options.faults.some(fault => NEEDS_NAMESPACES.includes(fault))) {
    const why = namespacesMissing()
    if (why === undefined) return await enterNamespaces(args)
    const left = options.faults.filter(fault => !NEEDS_NAMESPACES.includes(fault))
    console.log(`without ${NEEDS_NAMESPACES.join(' and ')}: ${why}`)
    if (left.length === 0) return 2
    options = { ...options, faults: left }
  }
  if (isolated) {
    // ip netns keeps its names there; nobody else is to see ours.
    mkdirSync('/run/netns', { recursive: true })
    await command('mount', '-t', 'tmpfs', 'none', '/run/netns')
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(130))
  const result = await runChaos({ ...options, isolated, say: text => console.log(text) })
  for (const line of result.wrong) console.log(`WRONG: ${line}`)
  if (!result.ok || options.keep) console.log(`folders, logs and history: ${result.dir}`)
  console.log(result.summary)
  return result.ok ? 0 : 1
}

function namespacesMissing(): string | undefined {
  if (process.platform !== 'linux') return 'they need Linux'
  if (process.getuid?.() !== 0) return 'they need root'
  for (const program of ['unshare', 'ip', 'mkfs.ext4', 'fallocate'])
    if (!['/usr/sbin', '/usr/bin', '/sbin', '/bin'].some(dir => existsSync(`${dir}/${program}`)))
      return `${program} is not installed`
  const { status, stderr } = spawnSync(
    'unshare',
    ['--net', '--mount', 'ip', 'link', 'add', 'br0', 'type', 'bridge'],
    {
      encoding: 'utf8',
    },
  )
  return status === 0 ? undefined : `this machine makes no network namespaces (${stderr.trim()})`
}

/** This same run again, where network and mounts are its own and vanish with it. Never returns. */
function enterNamespaces(args: string[]): Promise<never> {
  const script = fileURLToPath(new URL('../../scripts/chaos.js', import.meta.url))
  process.env[INSIDE] = '1'
  const own = ['--net', '--mount', '--propagation', 'private']
  return becomeChild('unshare', [...own, process.execPath, script, ...args])
}
