/**
 * Pairs of LSN and wall clock, and how layers store them: per sample two LEB128 varints, the LSN's distance from the
 * sample before (the first one's from 0) and the clock's, zigzagged, since clocks are set back now and then.
 */
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { ByteReader, ByteWriter } from './varint.ts'

export interface TimeSample {
  readonly lsn: Lsn
  /** µs since 1970, by the clock of the host that read the log. */
  readonly timeUs: number
}

/** `samples` ascend by LSN, strictly. */
export function encodeTimeSamples(samples: readonly TimeSample[]): Buffer {
  const out = new ByteWriter(samples.length * 6 + 16)
  out.varint(samples.length)
  let lsn = -1
  let timeUs = 0
  for (const sample of samples) {
    if (sample.lsn <= lsn) throw new RangeError(`time samples out of order: LSN ${sample.lsn} after ${lsn}`)
    out.varint(sample.lsn - Math.max(lsn, 0))
    out.signed(sample.timeUs - timeUs)
    lsn = sample.lsn
    timeUs = sample.timeUs
  }
  return out.bytes()
}

/** Throws a plain Error for bytes that are not what `encodeTimeSamples` made. */
export function decodeTimeSamples(bytes: Uint8Array): TimeSample[] {
  const input = new ByteReader(bytes)
  const count = input.varint()
  // A sample takes two bytes at least.
  if (count > input.left / 2) throw new Error(`${count} time samples in ${input.left} bytes`)
  const samples: TimeSample[] = []
  let lsn = 0
  let timeUs = 0
  for (let i = 0; i < count; i++) {
    const step = input.varint()
    lsn += step
    timeUs += input.signed()
    if ((i > 0 && step === 0) || lsn > LSN_MAX || timeUs < 0 || timeUs > Number.MAX_SAFE_INTEGER)
      throw new Error(`time sample ${i} is out of range`)
    samples.push({ lsn: lsn as Lsn, timeUs })
  }
  input.end()
  return samples
}
