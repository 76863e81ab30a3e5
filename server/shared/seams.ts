/**
 * Where the outside begins: time and disks come through these, so that a simulator can stand in for them. They are
 * passed in, never imported, by everything that must survive crashes. node-seams.ts has the real ones.
 */

export interface Clock {
  /** Wall clock, microseconds since 1970. May jump. */
  wallTimeUs(): number
  /** Milliseconds since some moment; never goes back. */
  monotonicMs(): number
  /** Ends sooner, without an error, when `signal` is aborted; a clock may ignore that. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/**
 * An open file. Nothing is durable before `datasync`. Errors are those of the operating system, with their `code`;
 * after a failed `datasync` the file's content is unknown and the process must not go on with it.
 */
export interface DiskFile {
  /**
   * Writes all of the buffers, one after the other, from `position`. `pastCache`: megabytes that nobody will read soon; zeros may
   * come behind them, up to the next multiple of 4096 in a file that is as long. Never while another write of the file is under way.
   */
  write(buffers: readonly Uint8Array[], position: number, pastCache?: boolean): Promise<void>
  /** Fills `target` from `position`; returns fewer bytes only at the end of the file. */
  read(target: Uint8Array, position: number): Promise<number>
  datasync(): Promise<void>
  size(): Promise<number>
  close(): Promise<void>
}

/** Files of one node. Creation, renaming and removal are durable only after `syncDir` of their folder. */
export interface Disk {
  /** 'create' fails if the file is there; 'write' and 'read' fail if it is not. */
  open(path: string, how: 'create' | 'write' | 'read'): Promise<DiskFile>
  readFile(path: string): Promise<Uint8Array>
  /** Names in a folder, in no order. */
  list(dir: string): Promise<string[]>
  /** With the folders above it. No error if it is there. */
  makeDir(dir: string): Promise<void>
  exists(path: string): Promise<boolean>
  rename(from: string, to: string): Promise<void>
  /** A file, or a folder with all that is in it. No error if it is not there. */
  remove(path: string): Promise<void>
  syncDir(dir: string): Promise<void>
}
