-- The shared key-value store: bytea throughout, so that any UTF-8 (U+0000 too) round-trips and order is byte order.

create table state (
  key         bytea primary key,
  value       bytea not null,
  -- Bytes of key and value: what the pair counts against the capacity.
  size        bigint not null,
  seq         bigint not null,
  modified_by text not null,
  modified_at timestamptz not null
);
-- Agents' values are mostly small or already dense; compressing them costs more time than it saves space.
alter table state alter column value set storage external;

-- One row, locked by whoever reserves or settles, so that the capacity has one order of events.
-- used_bytes + reserved_bytes = for each key, the largest of its present size and the sizes of the writes to it in flight, summed.
create table state_usage (
  only_row       boolean primary key default true check (only_row),
  used_bytes     bigint not null default 0,
  reserved_bytes bigint not null default 0,
  key_count      bigint not null default 0
);
insert into state_usage default values;

-- Writes and deletes between their check and their event's arrival in the projection.
create table state_reservations (
  id          uuid primary key,
  key         bytea not null,
  kind        text not null check (kind in ('write', 'delete')),
  -- Size the key would have after it; 0 for a delete.
  size        bigint not null,
  reserved_at timestamptz not null default clock_timestamp()
);
create index state_reservations_key on state_reservations (key);
create index state_reservations_age on state_reservations (reserved_at);

-- The key space cut into ordered blocks with the number of keys in each: level 1 over keys, level 2 over blocks of level 1.
-- A block holds the keys from its first_key up to the next block's. Every first_key of level 2 is one of level 1.
create table state_blocks (
  level     smallint not null check (level in (1, 2)),
  first_key bytea not null,
  keys      bigint not null,
  primary key (level, first_key)
);
insert into state_blocks values (1, '', 0), (2, '', 0);

-- Number of keys k with low <= k < high; high null means no upper end. Looks at the rows of at most two blocks a level.
-- Its plans are made once, for any keys, and go by the indexes whatever size the tables had then.
create function count_state_keys(low bytea, high bytea) returns bigint language plpgsql stable
set plan_cache_mode to force_generic_plan set enable_seqscan to off as $$
declare
  -- No UTF-8 has this byte.
  upper  bytea := coalesce(high, '\xff');
  low_1  bytea := (select first_key from state_blocks where level = 1 and first_key >= low order by first_key limit 1);
  high_1 bytea := (select first_key from state_blocks where level = 1 and first_key <= upper order by first_key desc limit 1);
  low_2  bytea;
  high_2 bytea;
  total  bigint;
begin
  if low_1 is null or low_1 >= high_1 then
    return (select count(*) from state where key >= low and key < upper);
  end if;
  total := (select count(*) from state where key >= low and key < low_1)
         + (select count(*) from state where key >= high_1 and key < upper);
  low_2 := (select first_key from state_blocks where level = 2 and first_key >= low_1 order by first_key limit 1);
  high_2 := (select first_key from state_blocks where level = 2 and first_key <= high_1 order by first_key desc limit 1);
  if low_2 is null or low_2 >= high_2 then
    return total + (select coalesce(sum(keys), 0) from state_blocks
                    where level = 1 and first_key >= low_1 and first_key < high_1);
  end if;
  return total
    + (select coalesce(sum(keys), 0) from state_blocks where level = 1 and first_key >= low_1 and first_key < low_2)
    + (select coalesce(sum(keys), 0) from state_blocks where level = 2 and first_key >= low_2 and first_key < high_2)
    + (select coalesce(sum(keys), 0) from state_blocks where level = 1 and first_key >= high_2 and first_key < high_1);
end $$;

-- Cuts a block that has grown too large in two or more: one of more than 1,024 keys into blocks of 512, one of more than 128 blocks into blocks of 64.
create function split_state_block(block_level integer, block_first_key bytea) returns void language plpgsql as $$
declare
  next_key bytea := (select first_key from state_blocks where level = block_level and first_key > block_first_key
                     order by first_key limit 1);
begin
  if block_level = 1 then
    insert into state_blocks (level, first_key, keys)
    select 1, case when part = 0 then block_first_key else (array_agg(key order by key))[1] end, count(*)
    from (select key, (row_number() over (order by key) - 1) / 512 as part from state
          where key >= block_first_key and (next_key is null or key < next_key)) as parted
    group by part
    on conflict (level, first_key) do update set keys = excluded.keys;
  elsif (select count(*) > 128 from state_blocks
         where level = 1 and first_key >= block_first_key and (next_key is null or first_key < next_key)) then
    insert into state_blocks (level, first_key, keys)
    select 2, (array_agg(first_key order by first_key))[1], sum(keys)
    from (select first_key, keys, (row_number() over (order by first_key) - 1) / 64 as part from state_blocks
          where level = 1 and first_key >= block_first_key and (next_key is null or first_key < next_key)) as parted
    group by part
    on conflict (level, first_key) do update set keys = excluded.keys;
  end if;
end $$;

-- Keeps the blocks true after keys came and went. Called by the projector only, so there is one at a time.
create function count_state_changes(added bytea[], removed bytea[]) returns void language plpgsql as $$
declare
  changed record;
  -- Block of level 2 that the changed block belongs to: looked up for each, as splitting may have moved it.
  parent  bytea;
begin
  for changed in
    select found.first_key, sum(delta) as delta
    from (select unnest(added) as key, 1 as delta union all select unnest(removed), -1) as changes
    cross join lateral (select first_key from state_blocks where level = 1 and first_key <= changes.key
                        order by first_key desc limit 1) as found
    group by found.first_key order by found.first_key
  loop
    parent := (select first_key from state_blocks where level = 2 and first_key <= changed.first_key
               order by first_key desc limit 1);
    update state_blocks set keys = keys + changed.delta
    where (level = 1 and first_key = changed.first_key) or (level = 2 and first_key = parent);
    if (select keys > 1024 from state_blocks where level = 1 and first_key = changed.first_key) then
      perform split_state_block(1, changed.first_key);
      perform split_state_block(2, parent);
    end if;
    delete from state_blocks where level = 2 and first_key = parent and keys = 0 and first_key <> '';
    delete from state_blocks where level = 1 and first_key = changed.first_key and keys = 0 and first_key <> ''
      and not exists (select from state_blocks where level = 2 and first_key = changed.first_key);
  end loop;
end $$;

-- Asks for room before the append. `requests`: [{"id","key" (base64),"kind","size"}…]. For each: `reserved`; `full` (the capacity would be
-- overrun); `absent` (nothing to delete); `busy` (another delete of the key is in flight: ask again when it is done).
create function reserve_state(requests json, capacity bigint) returns table (id uuid, outcome text) language plpgsql as $$
#variable_conflict use_column
declare
  request   record;
  occupied  bigint;
  grown     bigint := 0;
  present   bigint;
  peak      bigint;
begin
  select used_bytes + reserved_bytes into occupied from state_usage for update;
  for request in
    select r.id, decode(r.key, 'base64') as key, r.kind, r.size
    from json_to_recordset(requests) as r (id uuid, key text, kind text, size bigint)
  loop
    id := request.id;
    outcome := 'reserved';
    present := (select s.size from state s where s.key = request.key);
    peak := greatest(coalesce(present, 0),
                     coalesce((select max(f.size) from state_reservations f where f.key = request.key), 0));
    if request.kind = 'delete' then
      -- One that died before its append must not lock the key: an append takes 2 s at most.
      if exists (select from state_reservations f where f.key = request.key and f.kind = 'delete'
                 and f.reserved_at > clock_timestamp() - interval '10 seconds') then
        outcome := 'busy';
      elsif present is null then
        outcome := 'absent';
      end if;
    elsif occupied + grown + greatest(request.size - peak, 0) > capacity then
      outcome := 'full';
    else
      grown := grown + greatest(request.size - peak, 0);
    end if;
    if outcome = 'reserved' then
      insert into state_reservations (id, key, kind, size) values (request.id, request.key, request.kind, request.size);
    end if;
    return next;
  end loop;
  update state_usage set reserved_bytes = reserved_bytes + grown where grown > 0;
end $$;

-- What the reservations on some keys hold beyond the keys' present sizes.
create function reserved_beyond_present(keys bytea[]) returns bigint language sql stable as $$
  select coalesce(sum(greatest(held.size - coalesce(state.size, 0), 0)), 0)::bigint
  from (select key, max(size) as size from state_reservations where key = any (keys) group by key) as held
  left join state using (key)
$$;

-- Gives back reservations whose event was never appended.
create function release_state(ids uuid[]) returns void language plpgsql as $$
declare
  keys   bytea[];
  before bigint;
begin
  perform from state_usage for update;
  keys := array(select distinct key from state_reservations where id = any (ids));
  before := reserved_beyond_present(keys);
  delete from state_reservations where id = any (ids);
  update state_usage set reserved_bytes = reserved_bytes - before + reserved_beyond_present(keys);
end $$;

-- Applies the last change of each key of a batch and settles the reservations of all changes in it. Called by the projector only.
-- `finals`: [{"key","value" (both base64; value null: deleted),"seq","by","at"}…], one a key.
-- `settled`: [{"key","kind","size","times"}…]: reservations are told apart by what they reserve, as the log carries no ids of them.
create function project_state(finals json, settled json) returns void language plpgsql as $$
declare
  touched bytea[] := array(select decode(f.key, 'base64') from json_to_recordset(finals) as f (key text));
  before  bytea[];
  bytes_before    bigint;
  reserved_before bigint;
  after   bytea[];
  bytes_after     bigint;
begin
  perform from state_usage for update;
  select coalesce(array_agg(key), '{}'), coalesce(sum(size), 0) into before, bytes_before from state where key = any (touched);
  reserved_before := reserved_beyond_present(touched);

  delete from state where key in (
    select decode(f.key, 'base64') from json_to_recordset(finals) as f (key text, value text) where f.value is null);
  insert into state (key, value, size, seq, modified_by, modified_at)
  select f.key, f.value, octet_length(f.key) + octet_length(f.value), f.seq, f.by, f.at
  from (select decode(r.key, 'base64') as key, decode(r.value, 'base64') as value, r.seq, r.by, r.at
        from json_to_recordset(finals) as r (key text, value text, seq bigint, by text, at timestamptz)
        where r.value is not null) as f
  on conflict (key) do update set value = excluded.value, size = excluded.size, seq = excluded.seq,
    modified_by = excluded.modified_by, modified_at = excluded.modified_at;

  delete from state_reservations where id in (
    select held.id
    from (select id, key, kind, size, row_number() over (partition by key, kind, size order by reserved_at) as place
          from state_reservations where key = any (touched)) as held
    join (select decode(s.key, 'base64') as key, s.kind, s.size, s.times
          from json_to_recordset(settled) as s (key text, kind text, size bigint, times integer)) as done using (key, kind, size)
    where held.place <= done.times);

  select coalesce(array_agg(key), '{}'), coalesce(sum(size), 0) into after, bytes_after from state where key = any (touched);
  update state_usage set
    used_bytes = used_bytes + bytes_after - bytes_before,
    reserved_bytes = reserved_bytes - reserved_before + reserved_beyond_present(touched),
    key_count = key_count + cardinality(after) - cardinality(before);
  perform count_state_changes(
    array(select unnest(after) except select unnest(before)),
    array(select unnest(before) except select unnest(after)));
end $$;
