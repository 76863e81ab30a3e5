/** Help as a terminal of 80 columns shows it, of every command. */
import type { Command } from 'commander'
import t from 'tap'
import { buildProgram } from '../../../server/cli.ts'
import { fillParagraphs } from '../../../server/commands/command-line.ts'

t.test('paragraphs are filled, what is indented stays', async t => {
  t.equal(
    fillParagraphs('\na b\nc d\n\nExample:\n  x   y\ne f g h', 5),
    ['', 'a b c', 'd', '', 'Example:', '  x   y', 'e f g', 'h'].join('\n'),
  )
})

function all(command: Command): Command[] {
  return [command, ...command.commands.flatMap(all)]
}

t.test('no line of help is longer than a terminal is wide, examples aside', async t => {
  for (const command of all(buildProgram())) {
    let help = ''
    command.configureOutput({ writeOut: text => (help += text), getOutHelpWidth: () => 80 })
    command.outputHelp()
    const long = help
      .split('\n')
      .filter(line => line.length > 80 && !/^ {2,}(?:palimpsest|mariadbd|--)/.test(line))
    t.same(long, [], command.name())
  }
})

t.test('an option has one wording wherever it is', async t => {
  /** What is said in other words on purpose: the option means something else there. */
  const own = new Set([
    '--timeline', // to read, to write, to compare with, an id
    '--out',
    '--data',
    '--lsn',
    '--time',
    '--from',
    '--yes',
    '--id',
    '--listen',
    '--backup',
    '--safekeepers',
    '--datadir',
    '--json',
    '--scope',
    '--valid',
    '--node',
    '--zone',
  ])
  const texts = new Map<string, string>()
  for (const command of all(buildProgram()))
    for (const { long, flags, description } of command.options) {
      if (!long || own.has(long)) continue
      const text = `${flags}: ${description}`
      t.equal(texts.get(long) ?? text, text, command.name())
      texts.set(long, text)
    }
})
