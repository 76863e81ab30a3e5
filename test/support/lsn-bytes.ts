/** Bytes that differ with the LSN at which they stand: what is read back tells whether it is where it was written. */
export function lsnBytes(beginLsn: number, bytes: number): Buffer {
  const out = Buffer.alloc(bytes)
  for (let i = 0; i < bytes; i++) out[i] = (beginLsn + i) * 31 + ((beginLsn + i) >> 8)
  return out
}
