/**
 * A real S3 service for tests: Ceph's gateway before a Ceph of one monitor and one OSD that keeps its objects in memory. All
 * of it listens on loopback, lies in one directory, and is gone with the test.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import type { Test } from 'tap'
import { type FoundRadosgw, findRadosgw } from '../../scripts/lib/radosgw.js'

const run = promisify(execFile)
const START_MS = 120_000
const KEY = 'PALIMPSESTTEST'

let foundOnce: FoundRadosgw | undefined

/** For tap's `skip` option: false where the programs are there, else which are not. */
export function radosgwSkip(): false | string {
  foundOnce ??= findRadosgw()
  return foundOnce.ok ? false : foundOnce.reason
}

// A test process that ends in the middle must not leave its children behind.
const running = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

export class Radosgw {
  readonly #dir: string
  readonly #programs: Record<string, string>
  readonly #children: ChildProcess[] = []
  readonly port: number
  readonly credentials = { accessKeyId: KEY, secretAccessKey: KEY }

  private constructor(dir: string, programs: Record<string, string>, port: number) {
    this.#dir = dir
    this.#programs = programs
    this.port = port
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`
  }

  /** What the page server's process needs beside its options. */
  get environment(): Record<string, string> {
    return { AWS_ACCESS_KEY_ID: KEY, AWS_SECRET_ACCESS_KEY: KEY }
  }

  /** Takes some 10 s. */
  static async start(t: Test): Promise<Radosgw> {
    const found = findRadosgw()
    if (!found.ok) throw new Error(found.reason)
    const dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-rgw-'))
    const [monitor, gateway] = await freePorts()
    const ceph = new Radosgw(dir, found.programs, gateway!)
    t.teardown(async () => {
      await ceph.stop()
      rmSync(dir, { recursive: true, force: true })
    })
    try {
      await ceph.#start(monitor!)
    } catch (error) {
      throw new Error(`Ceph did not start: ${(error as Error).message}\n${ceph.#logs()}`)
    }
    return ceph
  }

  async #start(monitorPort: number): Promise<void> {
    const dir = this.#dir
    for (const name of ['mon', 'osd', 'run', 'log']) mkdirSync(join(dir, name))
    const fsid = randomUUID()
    const keyring = join(dir, 'keyring')
    writeFileSync(
      join(dir, 'ceph.conf'),
      `[global]
fsid = ${fsid}
mon_host = v2:127.0.0.1:${monitorPort}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
keyring = ${keyring}
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 1
mon_data_avail_crit = 0
mon_osd_full_ratio = 1
admin_socket = ${dir}/run/$name.asok
run_dir = ${dir}/run
log_to_stderr = false
log_file = ${dir}/log/$name.log
[mon]
mon_data = ${dir}/mon
[osd]
osd_data = ${dir}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
[client.admin]
rgw_frontends = beast endpoint=127.0.0.1:${this.port}
rgw_dns_name = localhost
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_gc_processor_period = 600
`,
    )
    const authtool = (...args: string[]) => this.#run('ceph-authtool', args)
    const all = ['--cap', 'mon', 'allow *', '--cap', 'osd', 'allow *', '--cap', 'mgr', 'allow *']
    await authtool('-C', '--gen-key', '-n', 'mon.', '--cap', 'mon', 'allow *', keyring)
    await authtool('--gen-key', '-n', 'client.admin', ...all, keyring)
    await authtool(
      '--gen-key',
      '-n',
      'osd.0',
      '--cap',
      'mon',
      'allow profile osd',
      '--cap',
      'osd',
      'allow *',
      keyring,
    )
    const map = join(dir, 'monmap')
    await this.#run('monmaptool', [
      '--create',
      '--fsid',
      fsid,
      '--addv',
      'a',
      `v2:127.0.0.1:${monitorPort}`,
      map,
    ])
    await this.#run('ceph-mon', ['-i', 'a', '--mkfs', '--monmap', map, '--keyring', keyring])
    this.#spawn('ceph-mon', ['-f', '-i', 'a'])
    await this.#run('ceph', ['auth', 'import', '-i', keyring])
    const osd = randomUUID()
    await this.#run('ceph', ['osd', 'new', osd, '0'])
    await this.#run('ceph-osd', ['-i', '0', '--mkfs', '--osd-uuid', osd])
    this.#spawn('ceph-osd', ['-f', '-i', '0'])
    const user = [
      'user',
      'create',
      '--uid=test',
      '--display-name=test',
      `--access-key=${KEY}`,
      `--secret=${KEY}`,
    ]
    await this.#run('radosgw-admin', user)
    this.#spawn('radosgw', ['-f', '-n', 'client.admin'])
    const deadline = performance.now() + START_MS
    for (;;) {
      const reply = await fetch(this.endpoint).catch(() => undefined)
      if (reply !== undefined) return
      const dead = this.#children.find(child => child.exitCode !== null)
      if (dead !== undefined || performance.now() > deadline)
        throw new Error(`no answer from ${this.endpoint}`)
      await sleep(100)
    }
  }

  async bucket(name: string): Promise<void> {
    const client = new S3Client({
      endpoint: this.endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials: this.credentials,
      requestChecksumCalculation: 'WHEN_REQUIRED',
    })
    await client.send(new CreateBucketCommand({ Bucket: name }))
    client.destroy()
  }

  /** Access of the same user's that may read and list, and nothing else. */
  async reader(): Promise<{ accessKeyId: string; secretAccessKey: string }> {
    const key = `${KEY}READER`
    const who = ['--uid=test', '--subuser=test:reader']
    await this.#run('radosgw-admin', ['subuser', 'create', ...who, '--access=read'])
    const keys = ['--key-type=s3', `--access-key=${key}`, `--secret=${key}`]
    await this.#run('radosgw-admin', ['key', 'create', ...who, ...keys])
    return { accessKeyId: key, secretAccessKey: key }
  }

  /** The gateway answers nobody from here on, as if the network were cut; `resume` ends it. */
  pause(): void {
    this.#children.at(-1)!.kill('SIGSTOP')
  }

  resume(): void {
    this.#children.at(-1)!.kill('SIGCONT')
  }

  #run(program: string, args: readonly string[]): Promise<unknown> {
    const env = { ...process.env, CEPH_CONF: join(this.#dir, 'ceph.conf') }
    return run(this.#programs[program]!, [...args], { env, timeout: START_MS })
  }

  #spawn(program: string, args: readonly string[]): void {
    const output = openSync(join(this.#dir, 'log', `${program}.out`), 'w')
    const env = { ...process.env, CEPH_CONF: join(this.#dir, 'ceph.conf') }
    const child = spawn(this.#programs[program]!, [...args], { env, stdio: ['ignore', output, output] })
    running.add(child)
    child.once('exit', () => running.delete(child))
    this.#children.push(child)
  }

  #logs(): string {
    const text: string[] = []
    for (const program of ['ceph-mon', 'ceph-osd', 'radosgw'])
      try {
        text.push(readFileSync(join(this.#dir, 'log', `${program}.out`), 'utf8').slice(-1000))
      } catch {
        // It was not reached.
      }
    return text.join('\n')
  }

  /** The gateway first; nothing that it holds is worth an orderly end. */
  async stop(): Promise<void> {
    for (const child of this.#children.reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const ended = once(child, 'exit')
      child.kill('SIGKILL')
      await ended
    }
  }
}

/** Two free ports of this moment. */
async function freePorts(): Promise<number[]> {
  const servers = [createServer(), createServer()]
  const ports: number[] = []
  for (const server of servers) {
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    ports.push((server.address() as { port: number }).port)
  }
  for (const server of servers) server.close()
  return ports
}
