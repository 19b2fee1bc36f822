-- Opens an allotment (`opening`), or renews one. `settled`: bytes of its writes that have been
-- applied since, and so are in used_bytes. `lost`: of those of which the node does not know whether
-- they ever will be; they become an allotment of their own, for maintenance to clear away. It then
-- has `wanted` bytes, or a 256th of what is free where that is less, and nothing where that is
-- little: where the capacity is nearly used up nobody holds any ahead of need. `kept`: what it does
-- not give back. Returns the bytes that it has; null if there is no such allotment.
create or replace function renew_state_allotment(
  allotment uuid, opening boolean,
  settled bigint, lost bigint, kept bigint, wanted bigint, capacity bigint
) returns bigint language plpgsql as $$
declare
  free  bigint;
  share bigint;
  had   bigint := 0;
  has   bigint;
begin
  select capacity - used_bytes - reserved_bytes into free from state_usage for update;
  if not opening then
    select bytes into had from state_allotments where id = allotment;
    if not found then return null; end if;
  end if;
  share := (free + had - lost) / 256;
  has := greatest(kept, least(wanted, case when share < 65536 then 0 else share end));
  if has = 0 then
    delete from state_allotments where id = allotment;
  else
    insert into state_allotments (id, bytes) values (allotment, has)
    on conflict (id) do update set bytes = excluded.bytes, renewed_at = clock_timestamp();
  end if;
  if lost > 0 then
    insert into state_allotments (id, bytes) values (gen_random_uuid(), lost);
  end if;
  update state_usage set
    reserved_bytes = reserved_bytes + has + lost - had,
    allotted_bytes = allotted_bytes + has + lost - had;
  return has;
end $$;
