-- Applies a batch of the log in one statement, and so in one transaction and one round trip.
-- `registry`: {"operators","agents"}, `state`: {"finals","reservations"}, `messages`: {"sent",
-- "queued","delivered"}, each as the function of its capability takes them. Returns the number of
-- messages dropped from full queues; null, and nothing is applied, if the projection is not at
-- from_seq or its lease another's.
create or replace function apply_events(
  lease_holder text, from_seq bigint, to_seq bigint,
  registry json, state json, messages json, max_queue bigint
) returns bigint language plpgsql as $$
declare
  operators json := registry -> 'operators';
  agents    json := registry -> 'agents';
  finals    json := state -> 'finals';
  sent      json := messages -> 'sent';
  queued    uuid[] := array(select json_array_elements_text(messages -> 'queued')::uuid);
  delivered uuid[] := array(select json_array_elements_text(messages -> 'delivered')::uuid);
begin
  update projections set applied_seq = to_seq
  where name = 'database' and applied_seq = from_seq and holder = lease_holder;
  if not found then return null; end if;
  if operators::text <> '[]' or agents::text <> '[]' then
    perform project_registry(operators, agents);
  end if;
  if finals::text <> '[]' then perform project_state(finals, state -> 'reservations'); end if;
  if sent::text <> '[]' or cardinality(queued) + cardinality(delivered) > 0 then
    return project_messages(sent, queued, delivered, max_queue);
  end if;
  return 0;
end $$;
