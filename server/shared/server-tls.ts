/** A server's certificate, key and client CA: read from files, checked, and read again when they change. */
import { constants, createPrivateKey, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createSecureContext, type SecureContextOptions, type TlsOptions } from 'node:tls'
import { invalidError } from './errors.ts'
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

const SOON_MS = 7 * 24 * 3600_000

export class ServerTls {
  readonly requireClientCertificate: boolean
  private readonly material: Reloading<ServerTlsMaterial>

  /** @throws PalimpsestError of kind invalid that names the file */
  static async open(files: ServerTlsFiles, log: Log, lookMs?: number): Promise<ServerTls> {
    const names = [files.cert, files.key, ...(files.clientCa === undefined ? [] : [files.clientCa])]
    const material = await Reloading.open({
      what: 'TLS certificate',
      files: names,
      load: () => load(files, log),
      log,
      lookMs,
    })
    return new ServerTls(files, material)
  }

  private constructor(files: ServerTlsFiles, material: Reloading<ServerTlsMaterial>) {
    this.requireClientCertificate = files.clientCa !== undefined
    this.material = material
  }

  /** For `tls.createServer`. */
  get options(): TlsOptions {
    return {
      ...this.material.value,
      requestCert: this.requireClientCertificate,
      rejectUnauthorized: this.requireClientCertificate,
    }
  }

  onChange(run: (material: ServerTlsMaterial) => void): void {
    this.material.onChange(run)
  }

  reload(): Promise<void> {
    return this.material.reload()
  }

  close(): void {
    this.material.close()
  }
}

async function load(files: ServerTlsFiles, log: Log): Promise<ServerTlsMaterial> {
  const cert = await readPem(files.cert, 'certificate')
  const key = await readPem(files.key, 'private key')
  const ca = files.clientCa === undefined ? undefined : await readPem(files.clientCa, 'client CA')
  const certificate = parse(files.cert, () => new X509Certificate(cert))
  const privateKey = parse(files.key, () => createPrivateKey(key))
  if (ca !== undefined) parse(files.clientCa as string, () => new X509Certificate(ca))
  if (!certificate.checkPrivateKey(privateKey))
    throw invalidError(`the private key in ${files.key} does not belong to the certificate in ${files.cert}`)
  const validTo = certificate.validToDate
  const leftMs = validTo.getTime() - Date.now()
  if (leftMs <= 0)
    throw invalidError(`the certificate in ${files.cert} expired at ${validTo.toISOString()}; renew it`)
  const about = { file: files.cert, names: certificate.subjectAltName, validTo: validTo.toISOString() }
  if (leftMs < SOON_MS) log.warn(about, 'the TLS certificate expires soon; renew it')
  else log.info(about, 'TLS certificate')
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
  return material
}

/** @throws PalimpsestError of kind invalid */
export async function readPem(file: string, what: string): Promise<Buffer> {
  try {
    return await readFile(file)
  } catch (error) {
    throw invalidError(`cannot read the ${what} ${file}: ${(error as NodeJS.ErrnoException).code}`)
  }
}

function parse<T>(file: string, run: () => T): T {
  try {
    return run()
  } catch (error) {
    throw invalidError(`${file} cannot be used: ${(error as Error).message}`)
  }
}
