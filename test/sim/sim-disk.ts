/**
 * Disk and clock of a simulated process, over test/support/memory-disk.ts: operations take time, fail as they are told to, and end
 * with the process that began them. A process may be killed between, before or after any two of them.
 */
import type { Clock, Disk, DiskFile } from '../../server/shared/seams.ts'
import type { MemoryDisk } from '../support/memory-disk.ts'
import type { SimRandom, World } from './world.ts'

/** One run of a process. Nothing that it began reaches it, or the outside, after its end. */
export class Life {
  alive = true
  private readonly world: World

  constructor(world: World) {
    this.world = world
  }

  /** Runs it then, if the process still lives. */
  after(ms: number, run: () => void): void {
    this.world.after(ms, () => {
      if (this.alive) run()
    })
  }

  /** Resolves then, or never. */
  sleep(ms: number): Promise<void> {
    return new Promise(resolve => this.after(ms, resolve))
  }

  /** What never comes back: the caller is dead. */
  never<T>(): Promise<T> {
    return new Promise(() => {})
  }
}

export interface DiskFaults {
  /** Every operation takes so many times as long. */
  slowness: number
  /** The process is killed at so many operations from now; 0: no. */
  crashIn: number
  /** So many syncs from now fail, once; 0: no. */
  failSyncIn: number
  /** The mistake of a canary: a sync of the log says that it is done when it begins. */
  acksBeforeSync: boolean
}

export class SimClock implements Clock {
  private readonly world: World
  private readonly life: Life
  /** Of its oscillator. */
  private readonly rate: number
  private readonly wall: { stepUs: number }

  constructor(world: World, life: Life, rate: number, wall: { stepUs: number }) {
    this.world = world
    this.life = life
    this.rate = rate
    this.wall = wall
  }

  wallTimeUs(): number {
    return Math.round(1.7e15 + this.wall.stepUs + this.world.nowMs * 1000)
  }

  monotonicMs(): number {
    return this.world.nowMs * this.rate
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    const slept = this.life.sleep(ms / this.rate)
    if (signal === undefined) return slept
    if (signal.aborted) return Promise.resolve()
    return new Promise(resolve => {
      const done = () => {
        signal.removeEventListener('abort', done)
        resolve()
      }
      signal.addEventListener('abort', done)
      void slept.then(done)
    })
  }
}

export class SimDisk implements Disk {
  operations = 0
  private readonly inner: MemoryDisk
  private readonly life: Life
  private readonly random: SimRandom
  private readonly faults: DiskFaults
  private readonly crash: () => void
  /** A sync failed: what the process does from now on is watched. */
  private readonly onSyncFailed: (path: string) => void
  private readonly onSynced: (path: string) => void

  constructor(
    inner: MemoryDisk,
    life: Life,
    random: SimRandom,
    faults: DiskFaults,
    on: { crash: () => void; syncFailed: (path: string) => void; synced: (path: string) => void },
  ) {
    this.inner = inner
    this.life = life
    this.random = random
    this.faults = faults
    this.crash = on.crash
    this.onSyncFailed = on.syncFailed
    this.onSynced = on.synced
  }

  async open(path: string, how: 'create' | 'write' | 'read'): Promise<DiskFile> {
    const file = await this.io(0.05, () => this.inner.open(path, how))
    return {
      write: (buffers, position) => {
        // As a kernel does: what the buffers hold when the call is made.
        const copy = Buffer.concat(buffers)
        return this.io(0.1, () => file.write([copy], position))
      },
      read: (target, position) => this.io(0.05, () => file.read(target, position)),
      datasync: () => this.sync(path, file),
      size: () => this.io(0, () => file.size()),
      close: () => this.io(0, () => file.close()),
    }
  }

  readFile(path: string): Promise<Uint8Array> {
    return this.io(0.1, () => this.inner.readFile(path))
  }

  list(dir: string): Promise<string[]> {
    return this.io(0.05, () => this.inner.list(dir))
  }

  makeDir(dir: string): Promise<void> {
    return this.io(0.05, () => this.inner.makeDir(dir))
  }

  exists(path: string): Promise<boolean> {
    return this.io(0, () => this.inner.exists(path))
  }

  rename(from: string, to: string): Promise<void> {
    return this.io(0.1, () => this.inner.rename(from, to))
  }

  remove(path: string): Promise<void> {
    return this.io(0.1, () => this.inner.remove(path))
  }

  syncDir(dir: string): Promise<void> {
    return this.io(1, () => this.inner.syncDir(dir))
  }

  private async sync(path: string, file: DiskFile): Promise<void> {
    const { random, faults, life } = this
    const long = random.chance(0.01) ? 20 : 1
    if (faults.acksBeforeSync && path.endsWith('.seg')) {
      void this.pass(random.between(0.1, 1.6) * long).then(() => file.datasync())
      return
    }
    // A crash may come before the bytes are durable, or after, when nobody was told yet.
    await this.pass(random.between(0, 0.8) * long)
    if (faults.failSyncIn > 0 && --faults.failSyncIn === 0) {
      this.onSyncFailed(path)
      throw Object.assign(new Error('EIO: simulated'), { code: 'EIO' })
    }
    await file.datasync()
    if (!life.alive) return life.never()
    this.onSynced(path)
    await this.pass(random.between(0.1, 0.8) * long)
  }

  private async io<T>(ms: number, run: () => Promise<T>): Promise<T> {
    if (ms > 0) await this.pass(this.random.between(0.2, 2) * ms)
    if (!this.life.alive) return this.life.never()
    const result = await run()
    if (!this.life.alive) return this.life.never()
    return result
  }

  private async pass(ms: number): Promise<void> {
    const { life, faults } = this
    if (!life.alive) return life.never()
    this.operations++
    if (faults.crashIn > 0 && --faults.crashIn === 0) {
      this.crash()
      return life.never()
    }
    await life.sleep(ms * faults.slowness)
  }
}
