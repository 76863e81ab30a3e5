/** The command line: joins the commands, and turns what they throw into one line on stderr and an exit code (docs/operations.md has them). */

import { readFileSync } from 'node:fs'
import { type Command, CommanderError } from 'commander'
import { registerAttach } from './commands/attach.ts'
import { registerBackup } from './commands/backup.ts'
import { registerBench } from './commands/bench.ts'
import { CliCommand } from './commands/command-line.ts'
import { describeError, UsageError } from './commands/common.ts'
import { registerDev } from './commands/dev.ts'
import { registerExport } from './commands/export.ts'
import { registerImport } from './commands/import.ts'
import { InterruptedError } from './commands/interruption.ts'
import { registerKeys } from './commands/keys.ts'
import { registerLog } from './commands/log.ts'
import { registerMember } from './commands/member.ts'
import { registerPage } from './commands/page.ts'
import { registerPageServer } from './commands/pageserver.ts'
import { registerPing } from './commands/ping.ts'
import { registerSafekeeper } from './commands/safekeeper.ts'
import { registerStatus } from './commands/status.ts'
import { registerTimeline } from './commands/timeline.ts'
import { registerVerify } from './commands/verify.ts'

export function buildProgram(): Command {
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
    version: string
  }
  const program = new CliCommand('palimpsest')
    .description('Storage for MariaDB that keeps every version of every page.')
    .version(version)
    .showSuggestionAfterError()
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(oneLine(text)) })
  for (const register of [
    registerDev,
    registerAttach,
    registerImport,
    registerExport,
    registerVerify,
    registerPage,
    registerTimeline,
    registerMember,
    registerStatus,
    registerPing,
    registerSafekeeper,
    registerLog,
    registerPageServer,
    registerBackup,
    registerKeys,
    registerBench,
  ])
    register(program)
  inheritSettings(program)
  program.hook('preAction', (_program, command) => checkTogether(command.opts()))
  return program
}

/** Options that mean nothing alone; the same of every command that has them. */
function checkTogether({ connect, tlsCa, tlsCert, tlsKey, tlsClientCa }: Record<string, unknown>): void {
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError('--tls-cert and --tls-key belong together; one of them is missing')
  if (connect !== undefined && tlsCert !== undefined && tlsCa === undefined)
    throw new UsageError(
      '--tls-cert needs --tls-ca: the CA that signed the servers\' certificates, or "system"',
    )
  if (tlsClientCa !== undefined && tlsCert === undefined)
    throw new UsageError(
      '--tls-client-ca needs --tls-cert and --tls-key: clients are known by it over TLS only',
    )
}

/** A suggestion comes on a line of its own. */
function oneLine(text: string): string {
  return `${text
    .trim()
    .replace(/^error: /, 'palimpsest: ')
    .replace(/\s*\n\s*/g, ' ')}\n`
}

/** `exitOverride` and output settings do not reach commands that were added with `command()` before; pass them down. */
function inheritSettings(command: Command): void {
  for (const child of command.commands) {
    child.copyInheritedSettings(command)
    inheritSettings(child)
  }
}

let outlives = false

/**
 * Nobody may be reading what is printed any more (`palimpsest … | head -1`). What the command does is done all the same, and it
 * ends as it would have.
 */
function outliveReaders(): void {
  if (outlives) return
  outlives = true
  for (const stream of [process.stdout, process.stderr])
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error
    })
}

/** `PALIMPSEST_TOKEN_FILE=` is how a shell or a container says that there is none. */
function forgetEmptySettings(): void {
  for (const [name, value] of Object.entries(process.env))
    if (name.startsWith('PALIMPSEST_') && value === '') delete process.env[name]
}

export async function main(argv: string[]): Promise<number> {
  outliveReaders()
  forgetEmptySettings()
  try {
    await buildProgram().parseAsync(argv, { from: 'user' })
    return typeof process.exitCode === 'number' ? process.exitCode : 0
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
    const message = describeError(error)
    process.stderr.write(`palimpsest: ${message.replace(/\s*\n\s*/g, '; ')}\n`)
    if (process.env['PALIMPSEST_DEBUG'] && error instanceof Error) process.stderr.write(`${error.stack}\n`)
    // What could not be told to stop would go on.
    if (error instanceof InterruptedError) process.exit(error.exitCode)
    return error instanceof UsageError ? 2 : 1
  }
}
