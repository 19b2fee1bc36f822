-- Gives back rooms that nobody has renewed since, and whose writes have been applied or never will
-- be, at most so many. Returns how many there were.
create or replace function release_state_rooms(before timestamptz, most integer) returns bigint
language plpgsql as $$
declare
  rooms bigint;
  freed bigint;
begin
  -- First, as whoever renews a room does.
  perform from state_usage for update;
  with gone as (
    delete from state_rooms where id = any (array(
      select id from state_rooms where renewed_at < before order by renewed_at limit most))
    returning bytes
  )
  select count(*), coalesce(sum(bytes), 0) into rooms, freed from gone;
  if rooms > 0 then
    update state_usage set
      reserved_bytes = reserved_bytes - freed, room_bytes = room_bytes - freed;
  end if;
  return rooms;
end $$;
