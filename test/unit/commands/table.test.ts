import t from 'tap'
import { plainTable } from '../../../server/commands/table.ts'

t.test('columns are as wide as what is in them; those that say nothing are left out', async t => {
  t.equal(
    plainTable(
      [{ head: 'name' }, { head: 'zone' }, { head: 'bytes', align: 'right' }, { head: 'note' }],
      [
        ['a', '', 5, 'x'],
        ['longer', undefined, 12345678, undefined],
      ],
    ),
    ['name       bytes  note', 'a              5  x', 'longer  12345678  -'].join('\n'),
  )
  t.equal(plainTable([{ head: 'name' }, { head: 'zone' }], []), 'name  zone')
})

t.test('a long last column goes on in the next line', async t => {
  const words = 'several words '.repeat(12).trim()
  const lines = plainTable([{ head: 'LSN', align: 'right' }, { head: 'records' }], [[44960, words]]).split(
    '\n',
  )
  t.ok(lines.length > 2)
  t.ok(
    lines.every(line => line.length <= (process.stdout.columns || 80)),
    lines.join('\n'),
  )
  t.equal(lines.slice(1).join(' ').replace('44960', '').trim().replace(/\s+/g, ' '), words)
})
