// A dev cluster for a benchmark, and commands run against it, all through the command line that people use.
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { endChild, startChild } from './harness.ts'

const bin = fileURLToPath(new URL('../bin/palimpsest.js', import.meta.url))

export type Cluster = { address: string; child: ChildProcess }

/** Starts `palimpsest dev` on a free port. */
export async function startCluster(dataDir: string, options: readonly string[] = []): Promise<Cluster> {
  const args = ['dev', '--data', dataDir, '--listen', '127.0.0.1:0', '--log-level', 'error', ...options]
  const { child, match } = await startChild(bin, args, /^ready (\S+)$/)
  return { address: match[1]!, child }
}

export async function stopCluster(cluster: Cluster): Promise<void> {
  await endChild(cluster.child)
}

/** Runs one command to its end. @returns its stdout @throws with its stderr if it fails */
export function palimpsest(args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [bin, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    let out = ''
    let errors = ''
    child.stdout.on('data', chunk => {
      out += chunk
    })
    child.stderr.on('data', chunk => {
      errors = (errors + chunk).slice(-4000)
    })
    child.once('error', reject)
    child.once('close', code => {
      if (code === 0) resolve(out)
      else reject(new Error(`palimpsest ${args[0]} ended with exit code ${code}: ${errors.trim()}`))
    })
  })
}
