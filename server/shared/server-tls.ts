/** A server's certificate, key and client CA: read from files, checked, and read again when they change. */
import { constants, createPrivateKey, X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureContextOptions, type TlsOptions } from 'node:tls'
import { readPublic, readSecret } from './credential-files.ts'
import { invalidError } from './errors.ts'
import { type Expiring, expiringCertificate } from './expiry.ts'
import type { Log } from './log.ts'
import { Reloading } from './reloading.ts'

export interface ServerTlsFiles {
  /** PEM: the server's certificate, then those between it and the CA. */
  readonly cert: string
  readonly key: string
  /** PEM: clients must show a certificate that one of these signed. */
  readonly clientCa?: string | undefined
}

/** What node:tls wants to have. */
export interface ServerTlsMaterial extends SecureContextOptions {
  readonly cert: Buffer
  readonly key: Buffer
  readonly ca?: Buffer
}

interface Loaded {
  readonly material: ServerTlsMaterial
  readonly expiring: Expiring
}

export class ServerTls {
  readonly requireClientCertificate: boolean
  private readonly loaded: Reloading<Loaded>

  /** @throws PalimpsestError of kind invalid that names the file */
  static async open(files: ServerTlsFiles, log: Log, lookMs?: number): Promise<ServerTls> {
    const names = [files.cert, files.key, ...(files.clientCa === undefined ? [] : [files.clientCa])]
    const loaded = await Reloading.open({
      what: 'TLS certificate',
      files: names,
      load: async () => load(files, log),
      log,
      lookMs,
    })
    return new ServerTls(files, loaded)
  }

  private constructor(files: ServerTlsFiles, loaded: Reloading<Loaded>) {
    this.requireClientCertificate = files.clientCa !== undefined
    this.loaded = loaded
  }

  /** The certificate in force. */
  get expiring(): Expiring {
    return this.loaded.value.expiring
  }

  /** For `tls.createServer`. */
  get options(): TlsOptions {
    return {
      ...this.loaded.value.material,
      requestCert: this.requireClientCertificate,
      rejectUnauthorized: this.requireClientCertificate,
    }
  }

  onChange(run: (material: ServerTlsMaterial) => void): void {
    this.loaded.onChange(({ material }) => run(material))
  }

  reload(): Promise<void> {
    return this.loaded.reload()
  }

  close(): void {
    this.loaded.close()
  }
}

function load(files: ServerTlsFiles, log: Log): Loaded {
  const cert = readPublic(files.cert, 'certificate')
  const key = readSecret(files.key, 'private key')
  const ca = files.clientCa === undefined ? undefined : readPublic(files.clientCa, 'client CA')
  const certificate = parse(files.cert, () => new X509Certificate(cert))
  const privateKey = parse(files.key, () => createPrivateKey(key))
  if (ca !== undefined) parse(files.clientCa as string, () => new X509Certificate(ca))
  if (!certificate.checkPrivateKey(privateKey))
    throw invalidError(`the private key in ${files.key} does not belong to the certificate in ${files.cert}`)
  const { validFromDate: validFrom, validToDate: validTo } = certificate
  const expiring = expiringCertificate(cert, files.cert)
  const nowMs = Date.now()
  if (validTo.getTime() <= nowMs)
    throw invalidError(`the certificate in ${files.cert} expired at ${validTo.toISOString()}; renew it`)
  if (validFrom.getTime() > nowMs)
    throw invalidError(
      `the certificate in ${files.cert} is valid from ${validFrom.toISOString()} on only; wait, or set this machine's clock`,
    )
  const about = { file: files.cert, names: certificate.subjectAltName, validTo: validTo.toISOString() }
  log.info(about, 'TLS certificate')
  const material: ServerTlsMaterial = {
    cert,
    key,
    ...(ca === undefined ? {} : { ca }),
    minVersion: 'TLSv1.2',
    // A resumed session would skip the check of a client certificate that was withdrawn meanwhile.
    secureOptions: constants.SSL_OP_NO_TICKET,
  }
  // Whatever else OpenSSL may dislike shows here, and not at the first client.
  parse(files.cert, () => createSecureContext(material))
  return { material, expiring }
}

function parse<T>(file: string, run: () => T): T {
  try {
    return run()
  } catch (error) {
    throw invalidError(`${file} cannot be used: ${(error as Error).message}`)
  }
}
