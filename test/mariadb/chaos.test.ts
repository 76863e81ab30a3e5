// A short form of `npm run chaos`: nodes killed, stopped, replaced and emptied under a bank and a writer at full speed.
// PALIMPSEST_CHAOS_SEED chooses other data and other moments.
import t from 'tap'
import { runChaos } from '../chaos/chaos.ts'
import { empty, kill, replace, stop } from '../chaos/faults.ts'
import { mariadbSkip } from '../support/mariadb.ts'

const seed = Number(process.env['PALIMPSEST_CHAOS_SEED'] ?? 1)

t.test(
  'leader killed, leader stopped, member replaced, folder emptied: nothing acknowledged is missing',
  { skip: mariadbSkip(), timeout: 600_000 },
  async t => {
    const { wrong, history, summary, leaderlessMs } = await runChaos({
      seed,
      minutes: 0,
      faults: ['kill', 'stop', 'replace', 'empty'],
      schedule: [kill('leader'), stop('leader'), replace('follower'), empty('follower'), kill('leader')],
      isolated: false,
      bytesPerSecond: 8 << 20,
      keep: false,
      say: () => {},
    })
    t.strictSame(wrong, [], history.join('\n'))
    t.equal(leaderlessMs.length, 2)
    t.comment(summary)
  },
)
