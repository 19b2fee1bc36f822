-- Activates what a batch registers: a staged row gets its event's sequence number. `changes`:
-- "operators" [{"seq","id"}…] and "agents" [{"seq","ts","address"}…].
create or replace function project_registry(changes json) returns bigint language plpgsql as $$
begin
  update operators set seq = event.seq
  from json_to_recordset(changes -> 'operators') as event (seq bigint, id uuid)
  where operator_id = event.id and operators.seq is null;

  with activated as (
    update agents set seq = event.seq, registered_at = event.registered_at
    from (
      select seq, address,
             greatest(max(ts) over (order by seq), last_registered_at) as registered_at
      from json_to_recordset(changes -> 'agents') as new_agent (seq bigint, ts timestamptz, address text),
           registry_totals
    ) as event
    where agents.address = event.address and agents.seq is null
    returning agents.registered_at
  )
  update registry_totals set
    agents = registry_totals.agents + (select count(*) from activated),
    last_registered_at = (select max(registered_at) from activated)
  where exists (select from activated);
  return 0;
end $$;
