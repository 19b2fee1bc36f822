-- Gives back allotments that nobody has renewed since, and whose writes have been applied or never
-- will be, at most so many. Returns how many there were.
create or replace function release_state_allotments(before timestamptz, most integer) returns bigint
language plpgsql as $$
declare
  allotments bigint;
  freed      bigint;
begin
  -- First, as whoever renews one does.
  perform from state_usage for update;
  with gone as (
    delete from state_allotments where id = any (array(
      select id from state_allotments where renewed_at < before order by renewed_at limit most))
    returning bytes
  )
  select count(*), coalesce(sum(bytes), 0) into allotments, freed from gone;
  if allotments > 0 then
    update state_usage set
      reserved_bytes = reserved_bytes - freed, allotted_bytes = allotted_bytes - freed;
  end if;
  return allotments;
end $$;
