/*
 * Model of the consensus of docs/consensus.md, for Spin: elections, replication, joint membership, damage.
 * `npm run model` checks it and its broken variants; docs/consensus.md, "The model", tells what it leaves out.
 *
 * The network loses, delays, doubles and reorders without limit. That takes no channels: what a leader of a term can have sent is
 * its log in that term, which only grows (tlog), so a follower may take any part of it at any time; the same holds for
 * a candidate's question (reqTerm ...), and for acknowledgements, which only grow in a term (acked).
 *
 * -DN -DTERMS -DLENGTH bound it. -DMEMBERSHIP: one change from OLDSET to NEWSET. -DDAMAGE: one node loses acknowledged entries.
 * -DODD=set -DEVEN=set: sets of nodes that may stand in odd and even terms. -DNOOPS_ONLY: nothing is proposed.
 * Broken variants: -DACK_BEFORE_PERSIST -DFORGETS_VOTE -DCOMMITS_OLD_TERM -DSINGLE_STEP -DKEEPS_TERM -DVOTES_DAMAGED
 */
#ifndef N
#define N 3
#endif
#ifndef TERMS
#define TERMS 3
#endif
#ifndef LENGTH
#define LENGTH 2
#endif
#ifndef OLDSET
#define OLDSET 7
#endif
#ifndef NEWSET
#define NEWSET 12
#endif

#define FOLLOWER 0
#define CANDIDATE 1
#define LEADER 2

/* An entry: its term, and what it is. No two leaders share a term, so this is its identity. */
#define PLAIN 0
#define JOINT 1
#define FINAL 2
#define ENTRY(t, kind) ((t) * 4 + (kind))
#define TERM_OF(e) ((e) / 4)
#define KIND_OF(e) ((e) % 4)

#define LOG(n, i) log[(n) * LENGTH + (i)]
#define TLOG(t, i) tlog[((t) - 1) * LENGTH + (i)]
#define ACKED(t, n) acked[((t) - 1) * N + (n)]

/* Durable. */
byte term[N];
byte voted[N]; /* node + 1, 0 for nobody */
byte flushed[N]; /* how much of the log survives a crash */
/* Volatile. */
byte role[N];
byte log[N * LENGTH];
byte size[N];
byte verified[N]; /* equals the log of this term's leader up to here */
byte commit[N];
#ifdef DAMAGE
byte recovering[N];
byte damages;
#endif
/* Under way, and never lost for good. */
byte reqTerm[N];
byte reqLast[N];
byte reqSize[N];
byte granted[N];
byte leaderOf[TERMS]; /* node + 1 */
byte tlog[TERMS * LENGTH];
byte tsize[TERMS];
byte tcommit[TERMS];
byte acked[TERMS * N];
/* What was ever committed, and in which term first. */
byte committed[LENGTH];
byte committedIn[LENGTH];

hidden byte i;
hidden byte j;
hidden byte k;
hidden byte cf;
hidden byte set;

#define COUNT(m) (((m) & 1) + (((m) >> 1) & 1) + (((m) >> 2) & 1) + (((m) >> 3) & 1))
#define MAJORITY(m, of) (COUNT((m) & (of)) * 2 > COUNT(of))
#define QUORUM(m) ((cf == PLAIN && MAJORITY(m, OLDSET)) || (cf == JOINT && MAJORITY(m, OLDSET) && MAJORITY(m, NEWSET)) || (cf == FINAL && MAJORITY(m, NEWSET)))
#define LAST(n) (size[n] == 0 -> 0 : TERM_OF(LOG(n, size[n] - 1)))

/* The membership that counts for a node is the newest in its log. */
inline findConfig(n) {
  cf = PLAIN;
  k = 0;
  do
  :: k < size[n] ->
     if
     :: KIND_OF(LOG(n, k)) > cf -> cf = KIND_OF(LOG(n, k))
     :: else
     fi;
     k++
  :: else -> break
  od
}

/* A later term ends whatever a node was, and all that it knew of an older leader. */
inline enterTerm(n, t) {
  if
  :: t > term[n] ->
     term[n] = t;
     voted[n] = 0;
     role[n] = FOLLOWER;
     granted[n] = 0;
     verified[n] = 0
  :: else
  fi
}

inline cutTo(n, to) {
  k = to;
  do
  :: k < size[n] -> LOG(n, k) = 0; k++
  :: else -> break
  od;
  if :: size[n] > to -> size[n] = to :: else fi;
  if :: flushed[n] > to -> flushed[n] = to :: else fi;
  if :: verified[n] > to -> verified[n] = to :: else fi;
  if :: commit[n] > to -> commit[n] = to :: else fi
}

/* An acknowledgement leaves as soon as it may: the leader may take its time to count it. */
inline acknowledge(n) {
  if
  :: leaderOf[term[n] - 1] != 0 ->
#ifdef ACK_BEFORE_PERSIST
     j = size[n];
#else
     j = flushed[n];
#endif
     if :: j > verified[n] -> j = verified[n] :: else fi;
     if :: j > ACKED(term[n], n) -> ACKED(term[n], n) = j :: else fi
  :: else
  fi
}

/* What nobody can receive any more is forgotten, so that states that differ only in that are one. */
inline forget() {
  i = 1;
  do
  :: i <= TERMS ->
     set = 0;
     k = 0;
     do
     :: k < N -> if :: term[k] <= i -> set = 1 :: else fi; k++
     :: else -> break
     od;
     if
     :: set == 0 ->
        k = 0;
        do
        :: k < LENGTH -> TLOG(i, k) = 0; k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < N ->
           ACKED(i, k) = 0;
           if :: reqTerm[k] == i -> reqTerm[k] = 0; reqLast[k] = 0; reqSize[k] = 0 :: else fi;
           k++
        :: else -> break
        od;
        tsize[i - 1] = 0;
        tcommit[i - 1] = 0
     :: else
     fi;
     i++
  :: else -> break
  od
}

/* The leader's log of its term is what others can have been sent. */
inline publish(n) {
  k = 0;
  do
  :: k < size[n] -> TLOG(term[n], k) = LOG(n, k); k++
  :: else -> break
  od;
  tsize[term[n] - 1] = size[n];
  verified[n] = size[n]
}

inline append(n, kind) {
  LOG(n, size[n]) = ENTRY(term[n], kind);
  size[n] = size[n] + 1;
  publish(n)
}

inline tellCommit(n, upTo) {
  /* State machine safety: at each place one entry, for ever. */
  k = 0;
  do
  :: k < upTo ->
     assert(committed[k] == 0 || committed[k] == LOG(n, k));
     if
     :: committed[k] == 0 -> committed[k] = LOG(n, k); committedIn[k] = term[n]
     :: else
     fi;
     k++
  :: else -> break
  od;
  commit[n] = upTo
}

/* Log matching: where two logs have the same term, all before it is the same. */
inline checkMatching() {
  i = 0;
  do
  :: i < N ->
     j = i + 1;
     do
     :: j < N ->
        set = 0; /* from here down all must be equal */
        k = (size[i] < size[j] -> size[i] : size[j]);
        do
        :: k > 0 ->
           k--;
           if :: TERM_OF(LOG(i, k)) == TERM_OF(LOG(j, k)) -> set = 1 :: else fi;
           assert(set == 0 || LOG(i, k) == LOG(j, k))
        :: else -> break
        od;
        j++
     :: else -> break
     od;
     i++
  :: else -> break
  od
}

#ifdef DAMAGE
#define MAY_VOTE(n) (recovering[n] == 0)
#else
#define MAY_VOTE(n) true
#endif

/*
 * Who may stand in odd terms and in even ones. All, or a few for a deeper search. All nodes begin alike, so if all may it may as
 * well be node 0 that stands first: other runs are these with other names.
 */
#ifdef ODD
#define MAY_STAND(n) (((((term[n] + 1) % 2) == 1 -> ODD : EVEN) >> n) & 1)
#else
#define MAY_STAND(n) (n == 0 || term[0] > 0 || term[1] > 0 || term[2] > 0)
#endif

/* A node stands: its term and its vote are durable before the question leaves. */
#define STAND(n) \
  :: d_step { role[n] != LEADER && term[n] < TERMS && MAY_VOTE(n) && MAY_STAND(n) -> \
       findConfig(n); \
       if \
       :: cf != PLAIN || ((OLDSET >> n) & 1) -> \
          enterTerm(n, term[n] + 1); \
          voted[n] = n + 1; role[n] = CANDIDATE; granted[n] = (1 << n); \
          reqTerm[n] = term[n]; reqLast[n] = LAST(n); reqSize[n] = size[n]; \
          forget() \
       :: else \
       fi; skip }

/* v hears c's question. */
#define VOTE(v, c) \
  :: d_step { v != c && reqTerm[c] != 0 && (reqTerm[c] > term[v] || (reqTerm[c] == term[v] && voted[v] == 0)) -> \
       enterTerm(v, reqTerm[c]); \
       if \
       :: MAY_VOTE(v) && voted[v] == 0 && role[v] == FOLLOWER && \
          (reqLast[c] > LAST(v) || (reqLast[c] == LAST(v) && reqSize[c] >= size[v])) -> \
          voted[v] = c + 1; \
          if :: role[c] == CANDIDATE && term[c] == reqTerm[c] -> granted[c] = granted[c] | (1 << v) :: else fi \
       :: else \
       fi; \
       forget(); skip }

#define WIN(n) \
  :: d_step { role[n] == CANDIDATE && term[n] == reqTerm[n] -> \
       findConfig(n); \
       if \
       :: QUORUM(granted[n]) -> \
          assert(leaderOf[term[n] - 1] == 0 || leaderOf[term[n] - 1] == n + 1); /* election safety */ \
          leaderOf[term[n] - 1] = n + 1; \
          role[n] = LEADER; granted[n] = 0; \
          k = 0; \
          do /* leader completeness */ \
          :: k < LENGTH -> \
             assert(committed[k] == 0 || committedIn[k] >= term[n] || (k < size[n] && LOG(n, k) == committed[k])); \
             k++ \
          :: else -> break \
          od; \
          if :: size[n] < LENGTH -> append(n, PLAIN) :: else -> publish(n) fi; \
          acknowledge(n) \
       :: else \
       fi; skip }

#define PROPOSE(n) \
  :: d_step { role[n] == LEADER && size[n] < LENGTH -> append(n, PLAIN); acknowledge(n); skip }

#define FLUSH(n) \
  :: d_step { flushed[n] < size[n] -> \
       flushed[n] = size[n]; \
       if :: term[n] > 0 -> acknowledge(n) :: else fi; \
       recover(n); skip }

/* f takes what the leader of term t sent after entry p: one entry, or none (then it is a heartbeat). */
#define RECEIVE(f, t, p) \
  :: d_step { t >= term[f] && leaderOf[t - 1] != 0 && leaderOf[t - 1] != f + 1 && p <= tsize[t - 1] && \
       p <= size[f] && (p == 0 || LOG(f, p - 1) == TLOG(t, p - 1)) -> \
       enterTerm(f, t); \
       role[f] = FOLLOWER; granted[f] = 0; \
       if :: verified[f] < p -> verified[f] = p :: else fi; \
       if \
       :: p < tsize[t - 1] -> \
          if \
          :: p < size[f] && LOG(f, p) != TLOG(t, p) -> assert(commit[f] <= p); cutTo(f, p) \
          :: else \
          fi; \
          if :: p >= size[f] -> LOG(f, p) = TLOG(t, p); size[f] = p + 1 :: else fi; \
          if :: verified[f] < p + 1 -> verified[f] = p + 1 :: else fi \
       :: else \
       fi; \
       i = (tcommit[t - 1] < verified[f] -> tcommit[t - 1] : verified[f]); \
       if :: i > commit[f] -> tellCommit(f, i) :: else fi; \
       acknowledge(f); \
       recover(f); \
       checkMatching(); \
       forget(); skip }

#define COMMIT(n, upTo) \
  :: d_step { role[n] == LEADER && upTo > commit[n] && upTo <= size[n] && COUNTS(n, upTo) -> \
       set = 0; k = 0; \
       do \
       :: k < N -> if :: ACKED(term[n], k) >= upTo -> set = set | (1 << k) :: else fi; k++ \
       :: else -> break \
       od; \
       findConfig(n); \
       if :: QUORUM(set) -> tellCommit(n, upTo); tcommit[term[n] - 1] = upTo :: else fi; skip }

#ifdef COMMITS_OLD_TERM
#define COUNTS(n, upTo) true
#else
#define COUNTS(n, upTo) (TERM_OF(LOG(n, upTo - 1)) == term[n])
#endif

#ifdef FORGETS_VOTE
#define LOSE_VOTE(n) voted[n] = 0
#else
#define LOSE_VOTE(n) skip
#endif

#define CRASH(n) \
  :: d_step { role[n] != FOLLOWER || size[n] > flushed[n] || commit[n] > 0 || verified[n] > 0 || voted[n] > 0 -> \
       cutTo(n, flushed[n]); \
       role[n] = FOLLOWER; granted[n] = 0; verified[n] = 0; commit[n] = 0; \
       LOSE_VOTE(n); skip }

/* A leader that has committed in its term changes the membership; a joint one that is committed is left. */
#ifdef SINGLE_STEP
#define FIRST_STEP FINAL
#else
#define FIRST_STEP JOINT
#endif
#define CHANGE(n) \
  :: d_step { role[n] == LEADER && size[n] < LENGTH && commit[n] > 0 && TERM_OF(LOG(n, commit[n] - 1)) == term[n] -> \
       findConfig(n); \
       if \
       :: cf == PLAIN -> append(n, FIRST_STEP); acknowledge(n) \
       :: cf == JOINT -> \
          i = 0; \
          do \
          :: i < commit[n] && KIND_OF(LOG(n, i)) == JOINT -> append(n, FINAL); acknowledge(n); break \
          :: i < commit[n] && KIND_OF(LOG(n, i)) != JOINT -> i++ \
          :: i >= commit[n] -> break \
          od \
       :: else \
       fi; skip }

/* Acknowledged entries are lost. The node raises its term, and does not vote until the leader has brought it to a commit of its own term. */
#ifdef DAMAGE
#ifdef KEEPS_TERM
#define RAISE(n) skip
#else
#define RAISE(n) enterTerm(n, term[n] + 1)
#endif
#ifdef VOTES_DAMAGED
#define MARK(n) skip
#else
#define MARK(n) recovering[n] = 1
#endif
#define BREAK(n) \
  :: d_step { damages == 0 && flushed[n] > 0 && term[n] < TERMS -> \
       damages = 1; \
       cutTo(n, flushed[n] - 1); \
       role[n] = FOLLOWER; granted[n] = 0; verified[n] = 0; commit[n] = 0; \
       MARK(n); RAISE(n); \
       forget(); skip }
inline recover(n) {
  if
  :: recovering[n] == 1 && commit[n] > 0 && commit[n] <= flushed[n] && TERM_OF(LOG(n, commit[n] - 1)) == term[n] ->
     recovering[n] = 0
  :: else
  fi
}
#else
inline recover(n) { skip }
#endif

#define RECEIVE_ALL(f, t) RECEIVE(f, t, 0) RECEIVE(f, t, 1) RECEIVE_2(f, t) RECEIVE_3(f, t) RECEIVE_4(f, t)
#define COMMIT_ALL(n) COMMIT(n, 1) COMMIT(n, 2) COMMIT_3(n) COMMIT_4(n)
#define RECEIVE_2(f, t) RECEIVE(f, t, 2)
#if LENGTH > 2
#define RECEIVE_3(f, t) RECEIVE(f, t, 3)
#define COMMIT_3(n) COMMIT(n, 3)
#else
#define RECEIVE_3(f, t)
#define COMMIT_3(n)
#endif
#if LENGTH > 3
#define RECEIVE_4(f, t) RECEIVE(f, t, 4)
#define COMMIT_4(n) COMMIT(n, 4)
#else
#define RECEIVE_4(f, t)
#define COMMIT_4(n)
#endif
#if TERMS > 2
#define RECEIVE_TERM_3(f) RECEIVE_ALL(f, 3)
#else
#define RECEIVE_TERM_3(f)
#endif
#if TERMS > 3
#define RECEIVE_TERM_4(f) RECEIVE_ALL(f, 4)
#else
#define RECEIVE_TERM_4(f)
#endif
#if N > 3
#define VOTE_3(v) VOTE(v, 3)
#else
#define VOTE_3(v)
#endif
#ifdef MEMBERSHIP
#define CHANGE_IF(n) CHANGE(n)
#else
#define CHANGE_IF(n)
#endif
#ifdef DAMAGE
#define BREAK_IF(n) BREAK(n)
#else
#define BREAK_IF(n)
#endif
#ifdef NOOPS_ONLY
#define PROPOSE_IF(n)
#else
#define PROPOSE_IF(n) PROPOSE(n)
#endif

#define NODE(n) \
  STAND(n) VOTE(n, 0) VOTE(n, 1) VOTE(n, 2) VOTE_3(n) WIN(n) PROPOSE_IF(n) FLUSH(n) COMMIT_ALL(n) CRASH(n) \
  RECEIVE_ALL(n, 1) RECEIVE_ALL(n, 2) RECEIVE_TERM_3(n) RECEIVE_TERM_4(n) CHANGE_IF(n) BREAK_IF(n)

active proctype cell() {
end:
  do
  NODE(0)
  NODE(1)
  NODE(2)
#if N > 3
  NODE(3)
#endif
  od
}
