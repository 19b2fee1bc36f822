/** A read model that the kernel does not have: who wrote last, and how often each has written. */
import type { ReadModel } from '../../src/events/read-model.ts'

export const TABLE =
  'create table last_writes (writer text primary key, writes bigint not null, seq bigint not null)'

/** As `migrate` would install it from a file. */
export const FUNCTION = `
  create function project_last_writes(changes json) returns bigint language sql as $$
    insert into last_writes
    select writer, writes, seq from json_to_recordset(changes -> 'writers') as w (writer text, writes bigint, seq bigint)
    on conflict (writer) do update set writes = last_writes.writes + excluded.writes, seq = excluded.seq;
    select 0::bigint;
  $$`

export const lastWrites: ReadModel = {
  name: 'last_writes',
  types: ['state_written'],
  changesOf(events) {
    const writers = new Map<string, { writer: string; writes: number; seq: number }>()
    for (const { seq, type, data } of events) {
      if (type !== 'state_written') throw new Error(`it was asked about ${type}`)
      const writer = data.written_by
      writers.set(writer, { writer, writes: (writers.get(writer)?.writes ?? 0) + 1, seq })
    }
    return { writers: [...writers.values()] }
  },
  onSqlite({ sql }) {
    return ({ seq, type, data }) => {
      if (type !== 'state_written') throw new Error(`it was asked about ${type}`)
      sql.run`
        insert into last_writes values (${data.written_by}, 1, ${seq})
        on conflict (writer) do update set writes = writes + 1, seq = excluded.seq`
    }
  },
  checks: {
    replayed: [
      {
        table: 'replayed_last_writes',
        columns: { writer: 'text', seq: 'integer' },
        changeBy: ({ seq, type, data }) =>
          type === 'state_written' ? { put: { writer: data.written_by, seq } } : undefined,
      },
    ],
    both: [
      `select 'last writes: ' || r.writer || ' wrote last at ' || r.seq as difference
       from replayed_last_writes r left join last_writes l on l.writer = r.writer where l.seq is distinct from r.seq`,
    ],
  },
}
