/** Durations as people write them: `30m`, `12h`, `90d`. */
import { type Command, InvalidArgumentError, Option } from 'commander'
import { UsageError } from './common.ts'

const UNITS_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3600_000,
  d: 24 * 3600_000,
}

/** What stands behind a number without a unit; `none`: there must be one. */
type Unit = keyof typeof UNITS_MS | 'none'

/** Option parser for durations of `least` to `most`, which are written as durations. Gives milliseconds. */
export function durationArgument(least: string, most: string, unit: Unit = 'none'): (text: string) => number {
  const [leastMs, mostMs] = [milliseconds(least, 'none')!, milliseconds(most, 'none')!]
  return text => {
    const ms = milliseconds(text, unit)
    if (ms === undefined)
      throw new InvalidArgumentError(
        `"${text}" is not a duration; write it as 30m, 12h or 90d (ms, s, m, h and d are known).`,
      )
    if (ms < leastMs || ms > mostMs)
      throw new InvalidArgumentError(`"${text}" is not between ${least} and ${most}.`)
    return ms
  }
}

function milliseconds(text: string, unit: Unit): number | undefined {
  const [, number, given = unit] = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?$/.exec(text.trim()) ?? []
  const factor = UNITS_MS[given]
  return number === undefined || factor === undefined ? undefined : Math.round(Number(number) * factor)
}

const VALID_LEAST = '1m'
const VALID_MOST = '36500d'

export interface ValidOptions {
  valid?: number
  days?: number
  hours?: number
}

/** How long a credential is valid. `--days` and `--hours` are how it was once said. */
export function addValidOptions(command: Command, byDefault: string): Command {
  const days = durationArgument('1d', VALID_MOST, 'd')
  const hours = durationArgument('1h', VALID_MOST, 'h')
  return command
    .option(
      '--valid <DURATION>',
      `valid for so long, such as 30m, 12h or 90d (default: ${byDefault})`,
      durationArgument(VALID_LEAST, VALID_MOST),
    )
    .addOption(new Option('--days <N>', 'the same in days').argParser(days).hideHelp())
    .addOption(new Option('--hours <N>', 'the same in hours').argParser(hours).hideHelp())
}

/** @returns milliseconds  @throws UsageError if it is said twice */
export function validMs({ valid, days, hours }: ValidOptions, byDefault: string): number {
  const given = [valid, days, hours].filter(each => each !== undefined)
  if (given.length > 1) throw new UsageError('give only one of --valid, --days and --hours')
  return given[0] ?? milliseconds(byDefault, 'none')!
}
