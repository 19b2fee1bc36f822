/** What the last event of each key left of it, and what all of them take. */
import { hash } from 'node:crypto'
import type { LoggedEvent } from '../events/event.ts'
import type { ReadModel } from '../events/read-model.ts'
import { countStateChange } from './sqlite-state-blocks.ts'
import { sizeOfKey } from './sqlite-state-writes.ts'

/** What becomes of a key by a batch of events. */
interface Final {
  /** Base64, as the value. */
  key: string
  /** Null: the key is gone. */
  value: string | null
  /** The batch deletes the key, whether or not it writes it again. */
  deleted: boolean
  seq: number
  /** Who wrote it; empty where the key is gone. */
  by: string
  at: string
}

export const stateReadModel: ReadModel = {
  name: 'state',
  types: ['state_written', 'state_deleted', 'state_key_removed'],

  /** The last change of each key, and which reservations its writes were made on. */
  changesOf(events): { finals: Final[]; reservations: string[] } {
    const finals = new Map<string, Final>()
    const reservations: string[] = []
    for (const { seq, ts, type, data, reservation } of events) {
      if (type !== 'state_written' && type !== 'state_deleted' && type !== 'state_key_removed')
        continue
      const key = toBase64(data.key)
      const isWrite = type === 'state_written'
      finals.set(key, {
        key,
        value: isWrite ? toBase64(data.value) : null,
        deleted: !isWrite || finals.get(key)?.deleted === true,
        seq,
        by: isWrite ? data.written_by : '',
        at: ts,
      })
      if (reservation !== undefined) reservations.push(reservation)
    }
    return { finals: [...finals.values()], reservations }
  },

  onSqlite({ sql }) {
    function count(bytes: number, keys: 1 | 0 | -1, key: Uint8Array): void {
      sql.run`update state_usage set used_bytes = used_bytes + ${bytes}, key_count = key_count + ${keys}`
      if (keys !== 0) countStateChange(sql, key, keys)
    }
    return ({ seq, ts, type, data }) => {
      if (type === 'state_written') {
        const key = Buffer.from(data.key)
        const value = Buffer.from(data.value)
        const before = sizeOfKey(sql, key)
        sql.run`
          insert into state (key, value, seq, modified_by, modified_at)
          values (${key}, ${value}, ${seq}, ${data.written_by}, ${ts})
          on conflict (key) do update set value = excluded.value, seq = excluded.seq,
            modified_by = excluded.modified_by, modified_at = excluded.modified_at`
        count(key.length + value.length - (before ?? 0), before === undefined ? 1 : 0, key)
      } else if (type === 'state_deleted' || type === 'state_key_removed') {
        const key = Buffer.from(data.key)
        const before = sizeOfKey(sql, key)
        if (before === undefined) return
        sql.run`delete from state where key = ${key}`
        count(-before, -1, key)
      }
    }
  },

  checks: {
    replayed: [
      {
        table: 'replayed_state',
        columns: { key: 'bytes', value_hash: 'bytes', seq: 'integer', author: 'text' },
        changeBy({ seq, type, data }: LoggedEvent) {
          if (type === 'state_deleted' || type === 'state_key_removed')
            return { remove: Buffer.from(data.key) }
          if (type !== 'state_written') return undefined
          const value_hash = hash('sha256', data.value, 'buffer')
          return { put: { key: Buffer.from(data.key), value_hash, seq, author: data.written_by } }
        },
      },
    ],
    both: [
      `select 'state: key ' || encode(coalesce(s.key, r.key), 'escape') || case
                when s.key is null then ' is missing'
                when r.key is null then ' should have been deleted'
                when sha256(s.value) <> r.value_hash or s.modified_by <> r.author
                  then ' has another value than the log'
                else ' has another sequence number than in the log' end as difference
       from state s full join replayed_state r on r.key = s.key
       where s.key is null or r.key is null or sha256(s.value) <> r.value_hash
         or s.modified_by <> r.author or s.seq <> r.seq`,
      `select 'capacity: used_bytes is ' || used_bytes || ', the keys and values have ' || there as difference
       from state_usage,
         (select coalesce(sum(octet_length(key) + octet_length(value)), 0) as there from state) summed
       where used_bytes <> there`,
      `select 'capacity: key_count is ' || key_count || ', there are ' || there as difference
       from state_usage, (select count(*) as there from state) counted where key_count <> there`,
      // No UTF-8 has the byte ff.
      `with blocks as (
         select level, first_key, keys,
           lead(first_key, 1, decode('ff', 'hex')) over (partition by level order by first_key) as next
         from state_blocks
       ), counted as (
         select level, keys, case level
           when 1 then (select count(*) from state s where s.key >= blocks.first_key and s.key < next)
           else (select coalesce(sum(b.keys), 0) from state_blocks b
                 where b.level = 1 and b.first_key >= blocks.first_key and b.first_key < next) end as there
         from blocks
       )
       select 'state: a block of level ' || level || ' counts ' || keys || ' keys, there are ' || there as difference
       from counted where keys <> there`,
    ],
    postgres: [
      `select 'state: key ' || encode(key, 'escape') || ' counts ' || size || ' bytes, it has '
                || octet_length(key) + octet_length(value) as difference
       from state where size <> octet_length(key) + octet_length(value)`,
      `select 'capacity: reserved_bytes is ' || reserved_bytes || ', the reservations and allotments hold ' || held
                as difference
       from state_usage, (
         select reserved_beyond_present(array(select distinct key from state_reservations))
           + coalesce(sum(bytes), 0) as held
         from state_allotments) summed
       where reserved_bytes <> held`,
      `select 'capacity: allotted_bytes is ' || allotted_bytes || ', the allotments hold ' || held as difference
       from state_usage, (select coalesce(sum(bytes), 0) as held from state_allotments) summed where allotted_bytes <> held`,
    ],
  },
}

export function toBase64(text: string): string {
  return Buffer.from(text).toString('base64')
}
