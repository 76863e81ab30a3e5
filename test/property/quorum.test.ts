import fc from 'fast-check'
import t from 'tap'
import {
  allMembers,
  isQuorum,
  isVoter,
  majorityOf,
  quorumIndex,
  voteResult,
} from '../../server/safekeeper/core/quorum.ts'
import type { LogIndex, Membership, NodeId } from '../../server/safekeeper/core/types.ts'

const ids = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']
const someVoters = fc.uniqueArray(fc.constantFrom(...ids), { minLength: 1, maxLength: 7 })
const someMembership: fc.Arbitrary<Membership> = fc.record({
  voters: someVoters,
  outgoing: fc.option(someVoters, { nil: undefined }),
  learners: fc.uniqueArray(fc.constantFrom(...ids), { maxLength: 3 }),
})
const someMatches = fc.dictionary(fc.constantFrom(...ids), fc.nat(12))

/** Counts. */
function hasMajority(voters: readonly NodeId[], has: (id: NodeId) => boolean): boolean {
  return voters.filter(has).length * 2 > voters.length
}

function hasBoth(membership: Membership, has: (id: NodeId) => boolean): boolean {
  return (
    hasMajority(membership.voters, has) &&
    (membership.outgoing === undefined || hasMajority(membership.outgoing, has))
  )
}

t.test('the commit point is the last index that both majorities have', async () => {
  fc.assert(
    fc.property(someMembership, someMatches, (membership, matches) => {
      const matchOf = (id: NodeId) => (matches[id] ?? 0) as LogIndex
      let slow = 0
      while (slow < 20 && hasBoth(membership, id => matchOf(id) >= slow + 1)) slow++
      return quorumIndex(membership, matchOf) === slow
    }),
    { numRuns: 2000 },
  )
})

t.test('a set is a quorum if it has both majorities', async () => {
  fc.assert(
    fc.property(someMembership, fc.subarray(ids), (membership, set) => {
      const has = (id: NodeId) => set.includes(id)
      return isQuorum(membership, has) === hasBoth(membership, has)
    }),
    { numRuns: 2000 },
  )
})

t.test('a vote is won by both majorities, and lost when one of them can no longer be had', async () => {
  fc.assert(
    fc.property(someMembership, fc.dictionary(fc.constantFrom(...ids), fc.boolean()), (membership, given) => {
      const votes = new Map(Object.entries(given))
      const won = hasBoth(membership, id => votes.get(id) === true)
      const open = hasBoth(membership, id => votes.get(id) !== false)
      return voteResult(membership, votes) === (won ? 'won' : open ? 'open' : 'lost')
    }),
    { numRuns: 2000 },
  )
})

t.test('two quorums of memberships that follow each other have a member in common', async () => {
  const change = fc.tuple(someVoters, someVoters)
  fc.assert(
    fc.property(change, fc.subarray(ids), fc.subarray(ids), ([before, after], one, other) => {
      const joint: Membership = { voters: after, outgoing: before, learners: [] }
      for (const next of [{ voters: before, learners: [] }, { voters: after, learners: [] }, joint]) {
        const both = isQuorum(joint, id => one.includes(id)) && isQuorum(next, id => other.includes(id))
        if (both && !one.some(id => other.includes(id))) return false
      }
      return true
    }),
    { numRuns: 2000 },
  )
})

t.test('members', async t => {
  t.same([1, 2, 3, 4, 5, 7].map(majorityOf), [1, 2, 2, 3, 3, 4])
  const membership = { voters: ['a', 'b'], outgoing: ['b', 'c'], learners: ['c', 'd'] }
  t.same(allMembers(membership), ['a', 'b', 'c', 'd'])
  t.same(
    ['a', 'c', 'd'].map(id => isVoter(membership, id)),
    [true, true, false],
  )
})
