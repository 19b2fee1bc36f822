-- Keeps the blocks true after keys came and went. Called by the projector only, so there is one at
-- a time.
create or replace function count_state_changes(added bytea[], removed bytea[]) returns void
language plpgsql as $$
declare
  changed record;
  -- Block of level 2 that the changed block belongs to: looked up for each, as splitting may have
  -- moved it.
  parent  bytea;
begin
  for changed in
    select found.first_key, sum(delta) as delta
    from (select unnest(added) as key, 1 as delta
          union all select unnest(removed), -1) as changes
    cross join lateral (
      select first_key from state_blocks where level = 1 and first_key <= changes.key
      order by first_key desc limit 1) as found
    group by found.first_key order by found.first_key
  loop
    parent := (
      select first_key from state_blocks where level = 2 and first_key <= changed.first_key
      order by first_key desc limit 1);
    update state_blocks set keys = keys + changed.delta
    where (level = 1 and first_key = changed.first_key) or (level = 2 and first_key = parent);
    if (select keys > 256 from state_blocks
        where level = 1 and first_key = changed.first_key) then
      perform split_state_block(1, changed.first_key);
      perform split_state_block(2, parent);
    end if;
    delete from state_blocks
    where level = 2 and first_key = parent and keys = 0 and first_key <> '';
    delete from state_blocks
    where level = 1 and first_key = changed.first_key and keys = 0 and first_key <> ''
      and not exists (
        select from state_blocks where level = 2 and first_key = changed.first_key);
  end loop;
end $$;
