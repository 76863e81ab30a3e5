/** Reading by file descriptor: as much as is wanted, in however many calls that takes. */
import { read } from 'node:fs'

/** Fills `target` from `position`; returns fewer bytes only at the end of the file. Rejects with errors of the operating system. */
export async function readFully(fd: number, target: Uint8Array, position: number): Promise<number> {
  let at = 0
  while (at < target.length) {
    const bytes = await new Promise<number>((resolve, reject) => {
      read(fd, target, at, target.length - at, position + at, (error, n) =>
        error === null ? resolve(n) : reject(error),
      )
    })
    if (bytes === 0) break
    at += bytes
  }
  return at
}
