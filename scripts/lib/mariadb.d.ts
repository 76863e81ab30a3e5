/** The MariaDB programs of one installation, or why there are none to use. */
export type FoundMariadb =
  | {
      ok: true
      /** For example "10.11.18". */
      version: string
      /** Whether it is of the release that Palimpsest is tested with. */
      tested: boolean
      mariadbd: string
      installDb: string
      client: string
      check: string | undefined
      dump: string | undefined
      innochecksum: string | undefined
      backup: string | undefined
      sysbench: string | undefined
      basedir: string
    }
  | { ok: false; reason: string }

export const testedRelease: string
export const supportedText: string
export function findProgram(names: string[], directories?: string[]): string | undefined
export function isSupported(version: string): boolean
/** Looks for an installed MariaDB; changes nothing. */
export function findMariadb(): FoundMariadb
