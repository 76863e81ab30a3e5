/** "Did you mean": names that are nearly the one that somebody typed. */

/** More slips than this are another name. */
const SLIPS_MAX = 3
const NAMES_MAX = 3

/** `; did you mean a, b?`, or nothing if no name is near. */
export function didYouMean(typed: string, names: Iterable<string>): string {
  const wanted = typed.toLowerCase()
  const near = [...names]
    .map(name => ({ name, slips: slips(wanted, name.toLowerCase()) }))
    .filter(({ name, slips: n }) => n <= Math.min(SLIPS_MAX, Math.ceil(name.length / 3)))
    .sort((a, b) => a.slips - b.slips || (a.name < b.name ? -1 : 1))
    .slice(0, NAMES_MAX)
  return near.length === 0 ? '' : `; did you mean ${near.map(({ name }) => name).join(', ')}?`
}

/** Letters put in, left out or exchanged: Levenshtein's distance. */
function slips(a: string, b: string): number {
  let before = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++)
      row.push(Math.min(before[j]! + 1, row[j - 1]! + 1, before[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    before = row
  }
  return before[b.length]!
}
