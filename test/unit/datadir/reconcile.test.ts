// Which table definition an export takes, and what it has the server finish. The definitions are MariaDB 10.11's own.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { makeDdlRecoveryLog } from '../../../server/datadir/ddl-recovery-log.ts'
import { definitionFits, Fit } from '../../../server/datadir/definition-fit.ts'
import type { DictionaryTable } from '../../../server/datadir/dictionary/dictionary.ts'
import { type FileContent, reconcile } from '../../../server/datadir/reconcile.ts'
import { parsePartitionNames, parseTableDefinition } from '../../../server/datadir/table-definition.ts'

const read = (name: string): Buffer =>
  readFileSync(fileURLToPath(new URL(`../../fixtures/definitions/${name}`, import.meta.url)))

const INT = (name: string) => ({ name, typeCode: 3, bytes: 4 })

function table(name: string, options: Partial<DictionaryTable> = {}): DictionaryTable {
  return { name, id: 1, space: 1, trxId: 1, columns: [INT('id')], indexes: ['PRIMARY'], ...options }
}

const plain = (name: string): DictionaryTable =>
  table(name, {
    columns: [
      INT('id'),
      { name: 'name', typeCode: 15, bytes: 160 },
      INT('v'),
      { name: 't', typeCode: 7, bytes: 4 },
      { name: 'e', typeCode: 254, bytes: 1 },
      { name: 'FTS_DOC_ID', typeCode: 3, bytes: 8 },
    ],
    indexes: ['PRIMARY', 'by_name', 'name', 'FTS_DOC_ID_INDEX'],
  })

t.test('definitions say what InnoDB has', async t => {
  const definition = parseTableDefinition(read('plain.frm'))!
  t.strictSame(
    definition.columns.map(column => column.name),
    ['id', 'name', 'v', 't', 'e'],
  )
  t.strictSame([definition.engine, definition.keys], ['innodb', ['PRIMARY', 'by_name', 'name']])
  t.equal(definitionFits(definition, plain('f/plain'), []), Fit.EXACT)
  t.equal(definitionFits(definition, { ...plain('f/plain'), indexes: ['PRIMARY', 'name'] }, []), Fit.INDEX)
  t.ok(definitionFits(definition, table('f/plain'), []) >= Fit.COLUMNS)
  t.equal(parseTableDefinition(read('aria_one.frm'))!.engine, 'aria')
  t.equal(parseTableDefinition(read('seq.frm'))!.engine, 'innodb')
  t.equal(parseTableDefinition(read('view_one.frm')), undefined, 'a view is none')
  for (let bytes = 0; bytes < 700; bytes += 7)
    t.doesNotThrow(() => parseTableDefinition(read('plain.frm').subarray(0, bytes)))
})

t.test('partitions', async t => {
  t.strictSame(parsePartitionNames(read('hashed.par')), ['p0', 'p1', 'p2'])
  const names = parsePartitionNames(read('parts.par'))!
  t.strictSame(names, ['p0#SP#s0', 'p0#SP#s1', 'p1#SP#s2', 'p1#SP#s3'])
  t.equal(parsePartitionNames(Buffer.alloc(8)), undefined)
  const hashed = parseTableDefinition(read('hashed.frm'))!
  t.equal(hashed.engine, 'innodb')
  t.equal(definitionFits(hashed, table('f/hashed#P#p0'), ['p0', 'p1', 'p2']), Fit.EXACT)
  t.equal(definitionFits(hashed, table('f/hashed#P#p0'), ['p0', 'p1']), Fit.NO_PARTITIONS)
  t.equal(definitionFits(hashed, table('f/hashed'), []), Fit.PARTITIONING)
})

const file = (path: string, name: string, lsn: number): FileContent => ({
  path,
  lsn: lsn as Lsn,
  mode: 0o660,
  mtimeMs: 1,
  content: read(name),
})

/** @param present what holds at LSN 1000; @param seen what else was ever seen */
async function run(
  dictionary: readonly DictionaryTable[],
  present: readonly FileContent[],
  seen: readonly FileContent[] = [],
  formerNames: Record<number, string> = {},
) {
  const result = await reconcile({
    lsn: 1000 as Lsn,
    dictionary,
    files: present.map(item => ({ ...item, totalBytes: item.content.length })),
    read: async item => present.find(other => other.path === item.path)!.content,
    versions: async (directory, suffix, from, to) =>
      [...present, ...seen].filter(
        item =>
          item.path.startsWith(`${directory}/`) &&
          item.path.endsWith(suffix) &&
          item.lsn >= from &&
          item.lsn <= to,
      ),
    formerName: async space => formerNames[space],
  })
  const paths = [...result.files, ...result.replaced].map(item => item.path).sort()
  return { ...result, paths }
}

t.test('the definition of the other side is replaced, however late it was noticed', async t => {
  const wrong = file('f/t.frm', 'hashed.frm', 900)
  const right = file('f/t.frm', 'plain.frm', 1100)
  const { replaced, paths, unmatched } = await run([plain('f/t')], [wrong], [right])
  t.strictSame([paths, unmatched], [['f/t.frm'], []])
  t.ok(replaced[0]!.content.equals(right.content))
  const renamed = await run([plain('f/t')], [], [file('f/#sql-alter-1-2.frm', 'plain.frm', 990)])
  t.strictSame(renamed.paths, ['f/t.frm'], 'seen under another name only')
  t.strictSame((await run([plain('f/t')], [wrong])).unmatched, ['f/t'])
})

t.test('a definition without a table is left out; what is not InnoDB stays', async t => {
  const { paths, actions } = await run(
    [],
    [
      file('f/gone.frm', 'plain.frm', 900),
      file('f/h.frm', 'hashed.frm', 900),
      file('f/h.par', 'hashed.par', 900),
      file('f/a.frm', 'aria_one.frm', 900),
      file('f/v.frm', 'view_one.frm', 900),
      file('ddl_recovery.log', 'hashed.par', 900),
    ],
  )
  t.strictSame([paths, actions], [['f/a.frm', 'f/v.frm'], []])
})

t.test('ALTER TABLE, ALGORITHM=COPY, at each of its steps', async t => {
  const frm = file('f/t.frm', 'plain.frm', 900)
  const alter = { ...plain('f/#sql-alter-1-2'), space: 2, trxId: 20 }
  const backup = { ...plain('f/#sql-backup-1-2'), space: 1, trxId: 30 }
  const filled = await run([plain('f/t'), alter], [frm])
  t.strictSame(filled.actions, [{ kind: 'delete', name: 'f/#sql-alter-1-2' }])
  const between = await run([backup, alter], [frm], [], { 1: 'f/t' })
  t.strictSame(between.actions, [
    { kind: 'rename', name: 'f/#sql-alter-1-2', newName: 'f/t' },
    { kind: 'delete', name: 'f/#sql-backup-1-2' },
  ])
  t.strictSame(between.paths, ['f/t.frm'])
  const after = await run([backup, { ...plain('f/t'), space: 2, trxId: 40 }], [frm], [], { 1: 'f/t' })
  t.strictSame(after.actions, [{ kind: 'delete', name: 'f/#sql-backup-1-2' }])
  const unknown = await run([backup, alter], [frm])
  t.match(unknown.warnings[0], /nothing tells which table it was/)
})

t.test('partitions that were not all renamed yet', async t => {
  const part = (name: string, space: number, trxId: number) => table(name, { space, trxId })
  const result = await run(
    [part('f/new#P#p0', 1, 50), part('f/old#P#p1', 2, 10), part('f/old#P#p2', 3, 10)],
    [file('f/old.frm', 'hashed.frm', 900), file('f/old.par', 'hashed.par', 900)],
    [file('f/new.frm', 'hashed.frm', 1100), file('f/new.par', 'hashed.par', 1100)],
    { 1: 'f/old#P#p0' },
  )
  t.strictSame(result.actions, [
    { kind: 'rename', name: 'f/old#P#p1', newName: 'f/new#P#p1' },
    { kind: 'rename', name: 'f/old#P#p2', newName: 'f/new#P#p2' },
  ])
  t.strictSame([result.paths, result.unmatched], [['f/new.frm', 'f/new.par'], []])
  const dropped = await run(
    [part('f/t#P#p2', 3, 10)],
    [file('f/t.frm', 'hashed.frm', 900), file('f/t.par', 'hashed.par', 900)],
  )
  t.strictSame([dropped.actions, dropped.paths], [[{ kind: 'delete', name: 'f/t#P#p2' }], []])
  t.match(dropped.warnings[0], /left out/)
})

t.test('the recovery log that the server is handed', async t => {
  const log = makeDdlRecoveryLog([
    { kind: 'rename', name: 'f/#sql-alter-1-2', newName: 'f/t' },
    { kind: 'delete', name: 'f/x' },
  ])
  t.equal(log.length, 5 * 4096)
  t.equal(log.subarray(0, 8).toString('hex'), 'fefe0b0200103800')
  t.strictSame([log[4096], log.readUInt32LE(4096 + 4)], [1, 2], 'an entry that leads to the first action')
  t.strictSame([log[8192], log[8193]], [2, 2])
  t.match(
    log.subarray(8192 + 56, 8192 + 200).toString('latin1'),
    /InnoDB\0.*\.\/f\/t\0.*\.\/f\/#sql-alter-1-2\0/s,
  )
  t.strictSame([log[16384], log[16385]], [2, 1])
})
