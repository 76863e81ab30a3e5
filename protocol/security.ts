/** What a client brings to every connection besides an address. One object for all of a process's dials. */
import type { SecureContext } from 'node:tls'

export interface ConnectionSecurity {
  /**
   * CA, certificate and key; asked for at each connect, so that renewed ones are used. Without it: plain TCP.
   * @throws PalimpsestError of kind invalid
   */
  readonly tls?: (() => SecureContext) | undefined
  /** Shown in the hello; asked for at each connect. Without it: none. @throws PalimpsestError of kind invalid */
  readonly token?: (() => string) | undefined
  /** Show the token even to addresses that are not loopback over plain TCP, where others can read it. */
  readonly insecureToken?: boolean | undefined
}
