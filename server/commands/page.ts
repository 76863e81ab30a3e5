/** `palimpsest page`: look at single pages, at any LSN. */
import type { Command } from 'commander'
import { registerPageGet } from './page-get.ts'
import { registerPageHistory } from './page-history.ts'
import { registerPageInspect } from './page-inspect.ts'

export function registerPage(program: Command): void {
  const page = program.command('page').description('look at single pages, at any LSN')
  registerPageGet(page)
  registerPageHistory(page)
  registerPageInspect(page)
}
