-- Applies a batch of the log in one statement, and so in one transaction and one round trip.

create function project_registry(new_operators json, new_agents json) returns void language plpgsql as $$
begin
  update operators set seq = event.seq
  from json_to_recordset(new_operators) as event (seq bigint, id uuid)
  where operator_id = event.id and operators.seq is null;

  with activated as (
    update agents set seq = event.seq, registered_at = event.registered_at
    from (select seq, address, greatest(max(ts) over (order by seq), last_registered_at) as registered_at
          from json_to_recordset(new_agents) as new_agent (seq bigint, ts timestamptz, address text), registry_totals) as event
    where agents.address = event.address and agents.seq is null
    returning agents.registered_at
  )
  update registry_totals set
    agents = registry_totals.agents + (select count(*) from activated),
    last_registered_at = (select max(registered_at) from activated)
  where exists (select from activated);
end $$;

-- `registry`: {"operators","agents"}, `state`: {"finals","settled"}, `messages`: {"sent","delivered"}, each as the functions of their capability take
-- them. Returns the number of messages dropped from full queues; null, and nothing is applied, if the projection is not at from_seq
-- or its lease another's.
create function apply_events(
  lease_holder text, from_seq bigint, to_seq bigint, registry json, state json, messages json, max_queue bigint
) returns bigint language plpgsql as $$
begin
  update projections set applied_seq = to_seq
  where name = 'database' and applied_seq = from_seq and holder = lease_holder;
  if not found then return null; end if;
  if json_array_length(registry -> 'operators') + json_array_length(registry -> 'agents') > 0 then
    perform project_registry(registry -> 'operators', registry -> 'agents');
  end if;
  if json_array_length(state -> 'finals') > 0 then
    perform project_state(state -> 'finals', state -> 'settled');
  end if;
  if json_array_length(messages -> 'sent') + json_array_length(messages -> 'delivered') > 0 then
    return project_messages(messages -> 'sent', array(select json_array_elements_text(messages -> 'delivered')::uuid), max_queue);
  end if;
  return 0;
end $$;
