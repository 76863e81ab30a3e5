/** The show without a MariaDB server: a recorded log goes in, pages of several moments come out. */
import { join } from 'node:path'
import { unpackShow } from '../lib/recorded-show.js'
import { command, run, ShowError, type Stage, step, tell } from './stage.ts'

const TIMELINE = 'shop'

export async function play(stage: Stage): Promise<void> {
  step('A recorded MariaDB: its datadir at the beginning, its redo log, its datadir at the end')
  const recording = unpackShow(join(stage.directory, 'recorded'))
  const { story } = recording
  tell(`MariaDB ${story.mariadb}, a little shop, ${(story.endLsn / 2 ** 20).toFixed(1)} MiB of redo`)

  const server = ['--connect', stage.address]
  step('Import the datadir of the beginning, then all of the redo')
  await must(
    ['import', '--datadir', recording.baseDatadir, '--redo', recording.redoFile, '--timeline', TIMELINE],
    server,
  )

  step('Compare every page with the files that MariaDB itself left at the end')
  await must(
    ['verify', '--timeline', TIMELINE, '--datadir', recording.finalDatadir, '--lsn', String(story.endLsn)],
    server,
  )

  const { space, page } = story.orders
  const place = ['--space', String(space), '--page', String(page)]
  step('One page of table shop.orders: who changed it, and when (the newest eight)')
  await must(['page', 'history', '--timeline', TIMELINE, ...place, '--limit', '8'], server)

  step('The same page as it was at each moment of the story')
  const dumps = new Set<string>()
  for (const moment of story.moments) {
    tell(`${moment.what}: order 42 is ${moment.order42}`)
    const lines = await must(
      ['page', 'inspect', '--timeline', TIMELINE, ...place, '--lsn', String(moment.lsn)],
      server,
      lines => lines.slice(0, 6),
    )
    dumps.add(lines.join('\n'))
  }
  if (dumps.size < 2) throw new ShowError('the page looks the same at every moment; that must not be')
  tell('With MariaDB installed, "npm start" restores both moments and asks a real server for the row.')
}

/** Runs a command that must succeed; shows the lines that `choose` leaves. Gives all of them. */
async function must(
  args: readonly string[],
  server: readonly string[],
  choose: (lines: string[]) => string[] = lines => lines,
): Promise<string[]> {
  command(args.join(' '))
  const { code, lines } = await run([...args, ...server], () => false)
  for (const line of code === 0 ? choose(lines) : lines) tell(line)
  if (code !== 0) throw new ShowError(`"palimpsest ${args[0]}" ended with exit code ${code}`)
  return lines
}
