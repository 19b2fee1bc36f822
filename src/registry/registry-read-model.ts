/**
 * Who is registered. The log holds no credentials, so rows are staged in Postgres, and written with
 * their event in SQLite.
 */
import type { ReadModel } from '../events/read-model.ts'

export const registryReadModel: ReadModel = {
  name: 'registry',
  types: ['operator_created', 'agent_registered'],

  changesOf(events): { operators: object[]; agents: object[] } {
    return {
      operators: events.flatMap(({ seq, type, data }) =>
        type === 'operator_created' ? [{ seq, id: data.operator_id }] : [],
      ),
      agents: events.flatMap(({ seq, ts, type, data }) =>
        type === 'agent_registered' ? [{ seq, ts, address: data.address }] : [],
      ),
    }
  },

  checks: {
    replayed: [
      {
        table: 'replayed_holders',
        columns: { identity: 'text', seq: 'integer', operator: 'text' },
        changeBy({ seq, type, data }) {
          if (type === 'operator_created')
            return { put: { identity: data.operator_id, seq, operator: data.operator_id } }
          if (type === 'agent_registered')
            return { put: { identity: data.address, seq, operator: data.operator_id } }
          return undefined
        },
      },
    ],
    both: [
      `select 'registry: ' || coalesce(h.identity, r.identity) || case
                when h.identity is null then ' is in the log but not active'
                when r.identity is null then ' is active but not in the log'
                else ' has another sequence number or operator than in the log' end as difference
       from (
         select cast(operator_id as text) as identity, seq, cast(operator_id as text) as operator
         from operators where seq is not null
         union all
         select address, seq, cast(operator_id as text) from agents where seq is not null) h
       full join replayed_holders r on r.identity = h.identity
       where h.identity is null or r.identity is null or h.seq <> r.seq or h.operator <> r.operator`,
      `select 'registry: total is ' || agents || ', there are ' || there as difference
       from registry_totals, (select count(*) as there from agents where seq is not null) counted
       where agents <> there`,
    ],
  },
}
