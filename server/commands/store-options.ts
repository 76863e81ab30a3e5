/** Options of the commands that keep something in an object store. */
import { join } from 'node:path'
import type { Command } from 'commander'
import { PalimpsestError } from '../shared/errors.ts'
import type { ObjectReader, ObjectStore } from '../shared/object-store.ts'
import { openObjectReader, openObjectStore } from '../shared/object-store-open.ts'
import { S3_CHECKSUMS, type S3Checksums, type S3Options } from '../shared/s3-requests.ts'
import { HelpGroup } from './command-line.ts'
import { UsageError } from './common.ts'

export interface S3CommandOptions {
  s3Endpoint?: string
  s3Region?: string
  s3PathStyle: boolean
  s3Checksums?: S3Checksums
}

export interface StoreOptions extends S3CommandOptions {
  data: string
  store?: string
}

/** Credentials are not among them: they come from where the SDK looks (docs/operations.md). */
export function addStoreOptions(command: Command): Command {
  return addS3Options(
    command.option(
      '--store <DIR|s3://BUCKET/PREFIX>',
      'object store, where layers are kept (default: the directory DATA/store)',
    ),
  )
}

/** The same for any store. */
export function addS3Options(command: Command): Command {
  const option = (flags: string, text: string) => command.createOption(flags, text).helpGroup(HelpGroup.S3)
  return command
    .addOption(
      option('--s3-endpoint <URL>', "an S3 service that is not Amazon's, such as http://127.0.0.1:7480"),
    )
    .addOption(option('--s3-region <REGION>', 'region of the bucket (default: what the environment says)'))
    .addOption(
      option('--s3-path-style', 'put the bucket into the path, not into the host name').default(false),
    )
    .addOption(
      option(
        '--s3-checksums <KIND>',
        'how uploads are guarded (default: aws, or md5 with an endpoint of your own, which every service knows)',
      ).choices(S3_CHECKSUMS),
    )
}

export function openStore(options: StoreOptions): Promise<ObjectStore> {
  return openStoreAt(options.store ?? join(options.data, 'store'), options)
}

/** `where` is a directory or `s3://bucket/prefix`. */
export function openStoreAt(where: string, options: S3CommandOptions): Promise<ObjectStore> {
  return openObjectStore(where, s3Options(options))
}

/** The same for commands that only read: rights to read are enough, and a directory that is not there is not made. */
export async function openStoreToRead(where: string, options: S3CommandOptions): Promise<ObjectReader> {
  try {
    return await openObjectReader(where, s3Options(options))
  } catch (error) {
    if (error instanceof PalimpsestError && error.kind === 'invalid') throw new UsageError(error.message)
    throw error
  }
}

function s3Options(options: S3CommandOptions): S3Options {
  return {
    endpoint: options.s3Endpoint,
    region: options.s3Region,
    pathStyle: options.s3PathStyle,
    checksums: options.s3Checksums,
  }
}
