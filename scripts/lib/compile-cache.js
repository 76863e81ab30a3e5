// Keeps what V8 has compiled, and TypeScript without its types, from one start to the next.
import module from 'node:module'
import { join } from 'node:path'
import { root } from './checkout.js'

/**
 * Turns Node.js's compile cache on for this process, its worker threads and the processes that it starts. Half of the time of
 * a short command, and of a server's until it is ready, goes into reading TypeScript, once for each thread.
 *
 * The cache lies within the checkout: what is in it is run, so it must not be a place where other users can write. Where
 * the checkout cannot be written to, there is none. NODE_COMPILE_CACHE names another place; NODE_DISABLE_COMPILE_CACHE=1
 * turns it off. Entries are bound to the source's contents and the version of Node.js.
 */
export function keepCompiled() {
  const { env } = process
  // Node.js itself sees to these; coverage is less exact with a cache.
  if (env['NODE_COMPILE_CACHE'] || env['NODE_DISABLE_COMPILE_CACHE'] || env['NODE_V8_COVERAGE']) return
  const directory = join(root, 'node_modules', '.cache', 'compile')
  const enabled = module.enableCompileCache?.(directory)
  // Worker threads and children look here.
  if (enabled?.directory) env['NODE_COMPILE_CACHE'] = directory
}
