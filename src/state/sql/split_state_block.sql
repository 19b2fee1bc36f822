-- Cuts a block that has grown too large in two or more: one of more than 256 keys into blocks of
-- 128, one of more than 128 blocks into blocks of 64.
create or replace function split_state_block(block_level integer, block_first_key bytea)
returns void language plpgsql as $$
declare
  next_key bytea := (
    select first_key from state_blocks where level = block_level and first_key > block_first_key
    order by first_key limit 1);
begin
  if block_level = 1 then
    insert into state_blocks (level, first_key, keys)
    select 1, case when part = 0 then block_first_key else (array_agg(key order by key))[1] end,
           count(*)
    from (select key, (row_number() over (order by key) - 1) / 128 as part from state
          where key >= block_first_key and (next_key is null or key < next_key)) as parted
    group by part
    on conflict (level, first_key) do update set keys = excluded.keys;
  elsif (select count(*) > 128 from state_blocks
         where level = 1 and first_key >= block_first_key
           and (next_key is null or first_key < next_key)) then
    insert into state_blocks (level, first_key, keys)
    select 2, (array_agg(first_key order by first_key))[1], sum(keys)
    from (select first_key, keys, (row_number() over (order by first_key) - 1) / 64 as part
          from state_blocks
          where level = 1 and first_key >= block_first_key
            and (next_key is null or first_key < next_key)) as parted
    group by part
    on conflict (level, first_key) do update set keys = excluded.keys;
  end if;
end $$;
