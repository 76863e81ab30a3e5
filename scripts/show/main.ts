/** The show behind `npm start`: on a real server where there is one, else on a recorded log. */
import { rmSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { PalimpsestError } from '../../protocol/errors.ts'
import { command, killChildren, raiseStage, ShowError, type Stage, step, stop, tell } from './stage.ts'

/** Plays it. @returns the exit code */
export async function show(args: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      once: { type: 'boolean', default: false },
      recorded: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '10' },
    },
  })
  const seconds = Number(values.seconds)
  if (!(seconds >= 1 && seconds <= 3600)) throw new ShowError('--seconds takes a number from 1 to 3600')
  process.once('exit', killChildren)
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1))

  step('A cluster: three safekeepers and a page server in one process')
  const stage = await raiseStage(values.once)
  let code = 1
  try {
    const { play } = values.recorded ? await import('./recorded.ts') : await import('./live.ts')
    await play(stage, seconds)
    code = 0
  } catch (error) {
    const known = error instanceof ShowError || error instanceof PalimpsestError
    console.error(`\npalimpsest: ${known ? error.message : error instanceof Error ? error.stack : error}`)
  }
  if (values.once || code !== 0) {
    await stop(stage.cluster)
    if (values.once && code === 0) rmSync(stage.directory, { recursive: true, force: true })
    else if (code !== 0) console.error(`palimpsest: the files of this run are in ${stage.directory}`)
    return code
  }
  await leaveUp(stage)
  return 0
}

async function leaveUp(stage: Stage): Promise<void> {
  const connect = stage.address === '127.0.0.1:7070' ? '' : ` --connect ${stage.address}`
  step('The cluster stays up. Try:')
  command(`status${connect}`)
  command(`timeline show shop${connect}`)
  command(`page inspect --timeline shop --space 0 --page 5${connect}`)
  command(`page history --timeline shop --space 0 --page 5${connect}`)
  command(
    `export --timeline shop --time "${new Date().toISOString().slice(0, 19)}Z" --out /tmp/restored${connect}`,
  )
  command(`attach --datadir /var/lib/mysql --timeline mine${connect}`)
  tell('Ctrl-C stops it.')
  const { promise, resolve } = Promise.withResolvers<void>()
  process.once('SIGINT', resolve)
  stage.cluster.once('exit', () => resolve())
  await promise
  await stop(stage.cluster)
}
