-- Applies a batch of the log in one statement, and so in one transaction and one round trip.
-- `changes`: by the name of each read model that it concerns, in their order, what it changes, for
-- its function project_<name>(json), which returns the number of messages that it dropped from full
-- queues. Returns their sum; null, and nothing is applied, if the projection is not at from_seq or
-- its lease another's.
create or replace function apply_events(
  lease_holder text, from_seq bigint, to_seq bigint, changes json
) returns bigint language plpgsql as $$
declare
  model   text;
  its     bigint;
  dropped bigint := 0;
begin
  update projections set applied_seq = to_seq
  where name = 'database' and applied_seq = from_seq and holder = lease_holder;
  if not found then return null; end if;
  -- Their names alone: rows with megabytes of values would go by way of the disk.
  for model in select json_object_keys(changes) loop
    if model !~ '^[a-z_]+$' then raise exception 'no name of a read model: %', model; end if;
    execute format('select project_%s($1)', model) into its using changes -> model;
    dropped := dropped + coalesce(its, 0);
  end loop;
  return dropped;
end $$;
