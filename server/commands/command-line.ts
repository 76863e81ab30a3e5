/** The commands' common behaviour towards who types them: what is said of wrong usage, and how help is laid out. */
import {
  type AddHelpTextContext,
  type AddHelpTextPosition,
  type Argument,
  Command,
  type Option,
} from 'commander'

/** Longer lines are hard to read, however wide the terminal is. */
const HELP_COLUMNS_MAX = 100
const HELP_COLUMNS_DEFAULT = 80

/** Headings of help under which options stand that many commands have. */
export const HelpGroup = {
  SECURITY: 'Encryption and access:',
  MONITORING: 'Monitoring:',
  S3: 'S3:',
} as const

/** A command of this command line; its subcommands are such, too. */
export class CliCommand extends Command {
  constructor(name?: string) {
    super(name)
    this.configureHelp({ optionDescription, subcommandTerm })
  }

  override createCommand(name?: string): CliCommand {
    return new CliCommand(name)
  }

  /** The text's paragraphs are filled to the terminal's width; lines that are indented stay as they are. */
  override addHelpText(
    position: AddHelpTextPosition,
    text: string | ((context: AddHelpTextContext) => string),
  ): this {
    if (typeof text !== 'string') return super.addHelpText(position, text)
    return super.addHelpText(position, () => fillParagraphs(text, helpColumns()))
  }

  /** Called for the first option that is missing; what was mistyped is the likelier reason. */
  missingMandatoryOptionValue(missing: Option): void {
    const swallowed = this.options.find(option => this.#looksLikeOption(this.getOptionValue(key(option))))
    if (swallowed !== undefined)
      this.error(
        `error: ${swallowed.flags} has no value: ${this.getOptionValue(key(swallowed))} follows it at once`,
        { code: 'commander.optionMissingArgument' },
      )
    const unknown = this.args.find(word => word.startsWith('-') && word !== '-')
    if (unknown !== undefined) this.#unknownOption(unknown)
    const all = this.options.filter(
      option => option.mandatory && this.getOptionValue(key(option)) === undefined,
    )
    const list = (all.length === 0 ? [missing] : all).map(
      ({ flags, description }) => `${flags} (${description})`,
    )
    this.error(`error: "${pathOf(this)}" needs ${list.join(' and ')}; see "${pathOf(this)} --help"`, {
      code: 'commander.missingMandatoryOptionValue',
    })
  }

  #looksLikeOption(value: unknown): boolean {
    return typeof value === 'string' && this.options.some(({ long }) => long === value)
  }

  /** As Commander says it, with what it is like. */
  #unknownOption(flag: string): void {
    ;(this as unknown as { unknownOption(flag: string): void }).unknownOption(flag.split('=')[0]!)
  }
}

function key(option: Option): string {
  return option.attributeName()
}

/** `palimpsest timeline branch`. */
function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`
}

/** As Commander has it, but a flag that is off unless given need not say so. */
function optionDescription(this: unknown, option: Option): string {
  const extra: string[] = []
  if (option.argChoices) extra.push(`one of: ${option.argChoices.join(', ')}`)
  const isOff =
    option.defaultValue === false || option.defaultValue === undefined || option.defaultValue === ''
  if (!isOff || option.defaultValueDescription)
    extra.push(`default: ${option.defaultValueDescription || option.defaultValue}`)
  if (option.envVar) extra.push(`or ${option.envVar}`)
  return extra.length === 0 ? option.description : `${option.description} (${extra.join('; ')})`
}

/** `rename <name-or-id> <new-name>`; that there are options goes without saying. */
function subcommandTerm(this: unknown, command: Command): string {
  const args = command.registeredArguments.map(argument => humanReadable(argument))
  return [command.name(), ...args].join(' ')
}

function humanReadable(argument: Argument): string {
  const name = `${argument.name()}${argument.variadic ? '...' : ''}`
  return argument.required ? `<${name}>` : `[${name}]`
}

function helpColumns(): number {
  const columns = process.stdout.isTTY ? process.stdout.columns : HELP_COLUMNS_DEFAULT
  return Math.min(columns || HELP_COLUMNS_DEFAULT, HELP_COLUMNS_MAX)
}

export function fillParagraphs(text: string, columns: number): string {
  const lines: string[] = []
  let words: string[] = []
  const fill = (): void => {
    let line = ''
    for (const word of words) {
      if (line !== '' && line.length + 1 + word.length > columns) {
        lines.push(line)
        line = word
      } else line += line === '' ? word : ` ${word}`
    }
    if (line !== '') lines.push(line)
    words = []
  }
  for (const line of text.split('\n')) {
    if (line !== '' && !line.startsWith(' ')) words.push(...line.split(' '))
    else {
      fill()
      lines.push(line)
    }
  }
  fill()
  return lines.join('\n')
}
