// Where things lie in the checkout, and how its scripts speak to whoever started them.
// Everything under scripts/ must run on Node.js 20 with nothing installed: Node's own modules only.
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Absolute path of the checkout's root. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))

/** The Node.js that the project brings along (24); present once `npm ci` has run. */
export const ownNode = join(root, 'node_modules', '.bin', 'node')

/** Oldest major version of Node.js that runs the project's TypeScript as it is. */
export const nodeMajorMin = 24

/** An error whose message is already all that a person needs: it is printed without a stack. */
export class SetupError extends Error {
  /** @param {string} message one line: what happened, and what to do about it */
  constructor(message) {
    super(message)
    this.name = 'SetupError'
  }
}

/** Prints one line of progress on stderr, so that stdout stays for results. @param {string} line */
export function say(line) {
  process.stderr.write(`${line}\n`)
}

/**
 * Runs `main` and turns what it throws into one line on stderr and exit code 1.
 * @param {() => Promise<number | void>} main resolves with the exit code
 */
export async function runMain(main) {
  try {
    process.exitCode = (await main()) ?? 0
  } catch (error) {
    if (error instanceof SetupError) say(`palimpsest: ${error.message}`)
    else say(error instanceof Error ? (error.stack ?? error.message) : String(error))
    process.exitCode = 1
  }
}
