// Finds the programs of a one-node Ceph with its S3 gateway on this machine, without changing anything.
import { findProgram } from './mariadb.js'

/** Debian's packages that hold them. */
export const radosgwPackages = ['radosgw', 'ceph-mon', 'ceph-osd', 'ceph-common']

const names = ['ceph', 'ceph-authtool', 'ceph-mon', 'ceph-osd', 'monmaptool', 'radosgw', 'radosgw-admin']

/** @returns {{ok: true, programs: Record<string, string>} | {ok: false, reason: string}} */
export function findRadosgw() {
  /** @type {Record<string, string>} */
  const programs = {}
  const missing = []
  for (const name of names) {
    const found = findProgram([name])
    if (found === undefined) missing.push(name)
    else programs[name] = found
  }
  if (missing.length === 0) return { ok: true, programs }
  return { ok: false, reason: `no S3 service to test with: ${missing.join(', ')} not found` }
}
