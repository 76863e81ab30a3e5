export type FoundRadosgw =
  | { readonly ok: true; readonly programs: Record<string, string> }
  | { readonly ok: false; readonly reason: string }
export const radosgwPackages: readonly string[]
export function findRadosgw(): FoundRadosgw
