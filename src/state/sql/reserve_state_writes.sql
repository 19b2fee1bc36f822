-- Reserves capacity for writes whose node has no allotment, exactly, one after the other, so that
-- where it does not suffice for all it goes to those that came first. `requests`: [{"id","key"
-- (base64), "size"}…]. For each, in their order: `reserved`; `full` (the capacity would be
-- overrun); `busy` (it would not if no node had an allotment: ask again).
create or replace function reserve_state_writes(requests json, capacity bigint)
returns table (outcome text) language plpgsql as $$
declare
  request  record;
  occupied bigint;
  allotted bigint;
  taken    bigint := 0;
  growth   bigint;
begin
  select used_bytes + reserved_bytes, allotted_bytes into occupied, allotted
  from state_usage for update;
  for request in
    select r.id, decode(r.key, 'base64') as key, r.size
    from json_to_recordset(requests) as r (id uuid, key text, size bigint)
  loop
    -- Writes to one key take capacity for the largest, beyond what the key has now or in flight.
    growth := greatest(0, request.size - greatest(
      (select s.size from state s where s.key = request.key),
      (select max(f.size) from state_reservations f where f.key = request.key), 0));
    if occupied + taken + growth <= capacity then
      outcome := 'reserved';
      taken := taken + growth;
      insert into state_reservations (id, key, size)
      values (request.id, request.key, request.size);
    elsif occupied - allotted + taken + growth <= capacity then
      outcome := 'busy';
    else
      outcome := 'full';
    end if;
    return next;
  end loop;
  if taken > 0 then
    update state_usage set reserved_bytes = reserved_bytes + taken;
  end if;
end $$;
