/**
 * Deliberate mistakes, of the kinds that lose acknowledged redo. The simulator must find each of them, or it is broken.
 */
import { quorumIndex } from '../../server/safekeeper/core/quorum.ts'
import type { LogIndex } from '../../server/safekeeper/core/types.ts'
import type { NodeCanary } from './core-node.ts'

export const CANARIES: Readonly<Record<string, NodeCanary>> = {
  /** Reports entries as flushed when they are only written. */
  'ack-before-sync': { flushedBeforeSync: true },
  /** Comes back with its term, but not with the vote that it gave in it. */
  'forget-vote': { forgetsVote: true },
  /** Commits what a quorum has flushed although it is of an older term (Raft, figure 8). */
  'commit-old-term': {
    afterStep(core, effects) {
      const { lead } = core
      if (lead === undefined) return
      const membership = core.memberships[core.memberships.length - 1]!.membership
      const quorum = quorumIndex(membership, id => lead.progress.get(id)?.match ?? (0 as LogIndex))
      if (quorum <= core.commit) return
      core.commit = quorum
      const index = Math.min(quorum, core.flushed) as LogIndex
      if (index <= core.applied) return
      core.applied = index
      effects.push({ type: 'commit', index })
    },
  },
}
