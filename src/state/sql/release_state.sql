-- Gives back reservations whose event was never appended.
create or replace function release_state(ids uuid[]) returns void language plpgsql as $$
declare
  keys   bytea[];
  before bigint;
begin
  perform from state_usage for update;
  keys := array(select distinct key from state_reservations where id = any (ids));
  before := reserved_beyond_present(keys);
  delete from state_reservations where id = any (ids);
  update state_usage set
    reserved_bytes = reserved_bytes - before + reserved_beyond_present(keys);
end $$;
