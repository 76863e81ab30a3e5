/**
 * One of several processes that find the same stale locks at the same moments: `lock-racer.ts DIRECTORY…`. Says `ready`, is
 * told on stdin when to begin (milliseconds since 1970), tries the first directory then, the others one step later each,
 * and says which of them it got, by their numbers. It keeps them until stdin ends.
 */
import { once } from 'node:events'
import { lockDirectory } from '../../server/shared/dir-lock.ts'

const STEP_MS = 40
const directories = process.argv.slice(2)
console.log('ready')
const [told] = await once(process.stdin, 'data')
const beginMs = Number(String(told))
const won: number[] = []
directories.forEach((directory, i) => {
  while (Date.now() < beginMs + i * STEP_MS);
  try {
    lockDirectory(directory)
    won.push(i)
  } catch (error) {
    if (!/in use by/.test((error as Error).message)) throw error
  }
})
console.log(JSON.stringify(won))
await once(process.stdin, 'end')
