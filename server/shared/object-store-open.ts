/** From what a person wrote after `--store` to a store. */
import type { ObjectReader, ObjectStore } from './object-store.ts'
import { LocalObjectStore } from './object-store-local.ts'
import { parseS3Url, S3ObjectStore } from './object-store-s3.ts'
import type { S3Options } from './s3-requests.ts'

/** `s3://bucket/prefix`, or a directory. Throws `PalimpsestError` where it cannot be opened. */
export async function openObjectStore(where: string, s3: S3Options = {}): Promise<ObjectStore> {
  if (isDirectory(where)) return LocalObjectStore.open(where)
  return S3ObjectStore.open({ ...parseS3Url(where), ...s3 })
}

/** The same to read from: nothing is written, and a directory that does not exist is not made. */
export async function openObjectReader(where: string, s3: S3Options = {}): Promise<ObjectReader> {
  if (isDirectory(where)) return LocalObjectStore.openToRead(where)
  return S3ObjectStore.openToRead({ ...parseS3Url(where), ...s3 })
}

function isDirectory(where: string): boolean {
  return !/^[a-z0-9]+:\/\//i.test(where)
}
