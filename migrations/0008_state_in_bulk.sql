-- State in bulk: what a batch changes takes a few statements, not some for each of its keys, and reads its JSON once; and writes take their
-- room from what their node holds ahead, so that most of them ask the database for nothing before the append.

-- The oldest reservations are looked for now and then, among the few that there are; an index for it costs every write.
drop index state_reservations_age;
alter table state_reservations alter column kind set default 'write';
-- Which reservation a write in the embedded log was made on, where it was one: for the projection, not part of the public event.
alter table events add column reservation uuid;

-- Until then no other delete of the key begins: one that found it is under way.
alter table state add column delete_until timestamptz;

-- Room that a node holds for writes to come, and for those under way until it is known that they have been applied.
create table state_rooms (
  id         uuid primary key,
  bytes      bigint not null,
  renewed_at timestamptz not null default clock_timestamp()
);
-- Of reserved_bytes, what is in state_rooms.
alter table state_usage add column room_bytes bigint not null default 0;

-- Opens a room (`opening`), or renews one. `settled`: bytes of its writes that have been applied since, and so are in used_bytes. `lost`: of
-- those of which the node does not know whether they ever will be; they become a room of their own, for maintenance to clear away.
-- It then has `wanted` bytes, or a 256th of what is free where that is less, and nothing where that is little: where the capacity is nearly
-- used up nobody holds room ahead of need. `kept`: what it does not give back. Returns the bytes that it has; null if there is no such room.
create function hold_state_room(
  room uuid, opening boolean, settled bigint, lost bigint, kept bigint, wanted bigint, capacity bigint
) returns bigint language plpgsql as $$
declare
  free  bigint;
  share bigint;
  had   bigint := 0;
  has   bigint;
begin
  select capacity - used_bytes - reserved_bytes into free from state_usage for update;
  if not opening then
    select bytes into had from state_rooms where id = room;
    if not found then return null; end if;
  end if;
  share := (free + had - lost) / 256;
  has := greatest(kept, least(wanted, case when share < 65536 then 0 else share end));
  if has = 0 then
    delete from state_rooms where id = room;
  else
    insert into state_rooms (id, bytes) values (room, has)
    on conflict (id) do update set bytes = excluded.bytes, renewed_at = clock_timestamp();
  end if;
  if lost > 0 then
    insert into state_rooms (id, bytes) values (gen_random_uuid(), lost);
  end if;
  update state_usage set
    reserved_bytes = reserved_bytes + has + lost - had,
    room_bytes = room_bytes + has + lost - had;
  return has;
end $$;

-- Gives back rooms that nobody has renewed since, and whose writes have been applied or never will be. Returns how many there were.
create function release_state_rooms(before timestamptz) returns bigint language plpgsql as $$
declare
  rooms bigint;
  freed bigint;
begin
  perform from state_usage for update;
  with gone as (delete from state_rooms where renewed_at < before returning bytes)
  select count(*), coalesce(sum(bytes), 0) into rooms, freed from gone;
  if rooms > 0 then
    update state_usage set reserved_bytes = reserved_bytes - freed, room_bytes = room_bytes - freed;
  end if;
  return rooms;
end $$;

-- Reserves room for writes whose node holds none, exactly, one after the other, so that where it does not suffice for all it goes to those that
-- came first. `requests`: [{"id","key" (base64),"size"}…]. For each, in their order: `reserved`; `full` (the capacity would be overrun); `busy`
-- (it would not if nobody held room: ask again). `reserve_state` stays for nodes of the version before, which run until they are replaced.
create function reserve_state_writes(requests json, capacity bigint) returns table (outcome text) language plpgsql as $$
declare
  request  record;
  occupied bigint;
  in_rooms bigint;
  taken    bigint := 0;
  growth   bigint;
begin
  select used_bytes + reserved_bytes, room_bytes into occupied, in_rooms from state_usage for update;
  for request in
    select r.id, decode(r.key, 'base64') as key, r.size from json_to_recordset(requests) as r (id uuid, key text, size bigint)
  loop
    -- Writes to one key take room for the largest, beyond what the key has now or in flight.
    growth := greatest(0, request.size - greatest(
      (select s.size from state s where s.key = request.key),
      (select max(f.size) from state_reservations f where f.key = request.key), 0));
    if occupied + taken + growth <= capacity then
      outcome := 'reserved';
      taken := taken + growth;
      insert into state_reservations (id, key, size) values (request.id, request.key, request.size);
    elsif occupied - in_rooms + taken + growth <= capacity then
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

-- Applies the last change of each key of a batch and settles the reservations that its writes were made on. Called by the projector only.
-- `finals`: [{"key","value" (both base64; value null: the key is gone),"deleted" (whether or not it was written again),"seq","by","at"}…], one a
-- key. `reservations`: their ids.
-- Another meaning of its second parameter.
drop function project_state(json, json);
create function project_state(finals json, reservations json) returns void language plpgsql as $$
declare
  keys     bytea[];
  contents bytea[];
  deleted  boolean[];
  seqs     bigint[];
  authors  text[];
  times    timestamptz[];
  before   bytea[];
  added    bytea[];
  removed  bytea[];
  gone     bytea[];
  bytes_before    bigint;
  bytes_after     bigint;
  reserved_before bigint;
  reserved_after  bigint := 0;
  held     bigint;
  settled  bigint := 0;
begin
  perform from state_usage for update;
  select array_agg(decode(f.key, 'base64')), array_agg(decode(f.value, 'base64')), array_agg(coalesce(f.deleted, f.value is null)),
         array_agg(f.seq), array_agg(f.by), array_agg(f.at)
  into keys, contents, deleted, seqs, authors, times
  from json_to_recordset(finals) as f (key text, value text, deleted boolean, seq bigint, by text, at timestamptz);
  select coalesce(array_agg(key), '{}'), coalesce(sum(size), 0) into before, bytes_before from state where key = any (keys);
  select coalesce(sum(on_key.reservations), 0), coalesce(sum(greatest(on_key.size - coalesce(state.size, 0), 0)), 0)
  into held, reserved_before
  from (select key, max(size) as size, count(*) as reservations from state_reservations where key = any (keys) group by key) as on_key
  left join state using (key);
  select array_agg(f.key) filter (where f.value is not null and f.key <> all (before)),
         array_agg(f.key) filter (where f.deleted and f.key = any (before)),
         array_agg(f.key) filter (where f.value is null and f.key = any (before)),
         coalesce(sum(octet_length(f.key) + octet_length(f.value)), 0)
  into added, removed, gone, bytes_after
  from unnest(keys, contents, deleted) as f (key, value, deleted);

  -- Also of a key that is written again: no delete has found the new row.
  if removed is not null then
    delete from state where key = any (removed);
  end if;
  insert into state (key, value, size, seq, modified_by, modified_at)
  select f.key, f.value, octet_length(f.key) + octet_length(f.value), f.seq, f.author, f.time
  from unnest(keys, contents, seqs, authors, times) as f (key, value, seq, author, time)
  where f.value is not null
  on conflict (key) do update set value = excluded.value, size = excluded.size, seq = excluded.seq,
    modified_by = excluded.modified_by, modified_at = excluded.modified_at;

  if held > 0 then
    delete from state_reservations where id in (select json_array_elements_text(reservations)::uuid);
    get diagnostics settled = row_count;
    if settled < held then
      reserved_after := reserved_beyond_present(keys);
    end if;
  end if;

  update state_usage set
    used_bytes = used_bytes + bytes_after - bytes_before,
    reserved_bytes = reserved_bytes - reserved_before + reserved_after,
    key_count = key_count + coalesce(cardinality(added), 0) - coalesce(cardinality(gone), 0);
  if added is not null or gone is not null then
    perform count_state_changes(coalesce(added, '{}'), coalesce(gone, '{}'));
  end if;
end $$;

-- As before, but taking the parts of its JSON once. `state`: {"finals","reservations"}.
create or replace function apply_events(
  lease_holder text, from_seq bigint, to_seq bigint, registry json, state json, messages json, max_queue bigint
) returns bigint language plpgsql as $$
declare
  operators json := registry -> 'operators';
  agents    json := registry -> 'agents';
  finals    json := state -> 'finals';
  sent      json := messages -> 'sent';
  queued    uuid[] := array(select json_array_elements_text(coalesce(messages -> 'queued', '[]'))::uuid);
  delivered uuid[] := array(select json_array_elements_text(messages -> 'delivered')::uuid);
begin
  update projections set applied_seq = to_seq
  where name = 'database' and applied_seq = from_seq and holder = lease_holder;
  if not found then return null; end if;
  if operators::text <> '[]' or agents::text <> '[]' then perform project_registry(operators, agents); end if;
  if finals::text <> '[]' then perform project_state(finals, coalesce(state -> 'reservations', '[]')); end if;
  if sent::text <> '[]' or cardinality(queued) + cardinality(delivered) > 0 then
    return project_messages(sent, queued, delivered, max_queue);
  end if;
  return 0;
end $$;
