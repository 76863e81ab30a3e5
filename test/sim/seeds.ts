/**
 * Seeds that once failed, and what was wrong. They run with every `npm test`. A change of what a run draws changes what a seed does:
 * then a line here is only one more seed.
 */
export const REGRESSION_SEEDS: readonly { readonly seed: number; readonly was: string }[] = [
  { seed: 1, was: 'a member whose log was far behind got nothing: all that it lacked counted as in flight' },
  {
    seed: 80,
    was: 'the longest log was that of a voter whose removal was not committed, and it would not stand',
  },
  { seed: 134, was: 'each late answer had entries sent again, each of which brought an answer' },
  { seed: 158, was: 'a voter was removed although one of those that stayed was recovering: none could win' },
]

/** The same of whole nodes. */
export const NODE_REGRESSION_SEEDS: readonly { readonly seed: number; readonly was: string }[] = [
  { seed: 2, was: 'after a restart, commit was that of the base of the log and not of the snapshot' },
  { seed: 3, was: 'a member that was added later did not know the first members, nor where they are' },
  {
    seed: 22,
    was: 'a node that had just started dropped redo of a timeline that its state did not know yet',
  },
  { seed: 54, was: 'a replacement that a leader did not finish was not taken up by the next one' },
  {
    seed: 71,
    was: 'a learner in the place of its namesake was not made a voter by the leader after the one that began it',
  },
  { seed: 59, was: 'the log was trimmed before the cell had agreed on the backup that it was to have' },
]
