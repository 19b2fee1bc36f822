-- Blocks of a quarter of the size, as a page of keys counts those at its ends one by one. Those that there are keep theirs until one of their
-- keys comes or goes.

-- Cuts a block that has grown too large in two or more: one of more than 256 keys into blocks of 128, one of more than 128 blocks into blocks of 64.
create or replace function split_state_block(block_level integer, block_first_key bytea) returns void language plpgsql as $$
declare
  next_key bytea := (select first_key from state_blocks where level = block_level and first_key > block_first_key
                     order by first_key limit 1);
begin
  if block_level = 1 then
    insert into state_blocks (level, first_key, keys)
    select 1, case when part = 0 then block_first_key else (array_agg(key order by key))[1] end, count(*)
    from (select key, (row_number() over (order by key) - 1) / 128 as part from state
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
create or replace function count_state_changes(added bytea[], removed bytea[]) returns void language plpgsql as $$
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
    if (select keys > 256 from state_blocks where level = 1 and first_key = changed.first_key) then
      perform split_state_block(1, changed.first_key);
      perform split_state_block(2, parent);
    end if;
    delete from state_blocks where level = 2 and first_key = parent and keys = 0 and first_key <> '';
    delete from state_blocks where level = 1 and first_key = changed.first_key and keys = 0 and first_key <> ''
      and not exists (select from state_blocks where level = 2 and first_key = changed.first_key);
  end loop;
end $$;
