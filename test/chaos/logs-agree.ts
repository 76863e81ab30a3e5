/** The logs of stopped nodes, entry by entry, as `palimpsest log inspect` reads them. */
import type { EntryReport, LogReport } from '../../server/safekeeper/log/inspect.ts'
import type { ChaosNode } from './cell.ts'
import { palimpsest, palimpsestOk } from './process.ts'

/**
 * What is wrong: damage, redo of a timeline that does not follow on what was before it, entries that differ from another node's.
 * `committed`: up to there all have to be the same; what lies above may have been on its way.
 */
export async function disagreements(nodes: readonly ChaosNode[], committed: number): Promise<string[]> {
  const wrong: string[] = []
  let reference: { name: string; entries: Map<number, string> } | undefined
  for (const { name, dataDir } of nodes) {
    const { code, stdout, stderr } = await palimpsest([
      'log',
      'inspect',
      '--data',
      dataDir,
      '--verify',
      '--json',
    ])
    if (code !== 0) wrong.push(`log inspect of ${name} ended with ${code}: ${stderr} ${damage(stdout)}`)
    const text = await palimpsestOk(['log', 'inspect', '--data', dataDir, '--entries', '--json'])
    const entries = new Map<number, string>()
    const ends = new Map<string, number>()
    for (const line of text.split('\n')) {
      if (line === '') continue
      const entry = JSON.parse(line) as EntryReport
      const { index, term, kind, timeline, epoch, beginLsn, endLsn, isVoid } = entry
      // What a node has dropped or packed is its own affair.
      entries.set(index, JSON.stringify({ term, kind, timeline, epoch, beginLsn, endLsn }))
      if (timeline === undefined || isVoid || index > committed || (kind !== 'redo' && kind !== 'gap'))
        continue
      const end = ends.get(timeline)
      if (end !== undefined && end !== beginLsn)
        wrong.push(
          `${name}: entry ${index} of ${timeline} begins at LSN ${beginLsn}, the one before ends at ${end}`,
        )
      ends.set(timeline, endLsn)
    }
    const last = Math.max(0, ...entries.keys())
    if (last < committed) wrong.push(`${name} has entries up to ${last} only; ${committed} is committed`)
    if (reference === undefined) reference = { name, entries }
    else
      for (const [index, entry] of entries) {
        const other = reference.entries.get(index)
        if (other !== undefined && other !== entry && index <= committed)
          wrong.push(`entry ${index} differs: ${name} has ${entry}, ${reference.name} ${other}`)
      }
  }
  return wrong.slice(0, 20)
}

function damage(json: string): string {
  try {
    return (JSON.parse(json) as LogReport).damage.map(({ message }) => message).join('; ')
  } catch {
    return json.slice(0, 300)
  }
}
