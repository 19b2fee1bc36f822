-- Number of keys k with low <= k < high; high null means no upper end. Looks at the rows of at most
-- two blocks a level. Its plans are made once, for any keys, and go by the indexes whatever size
-- the tables had then.
create or replace function count_state_keys(low bytea, high bytea) returns bigint
language plpgsql stable
set plan_cache_mode to force_generic_plan set enable_seqscan to off as $$
declare
  -- No UTF-8 has this byte.
  upper  bytea := coalesce(high, '\xff');
  low_1  bytea := (
    select first_key from state_blocks where level = 1 and first_key >= low
    order by first_key limit 1);
  high_1 bytea := (
    select first_key from state_blocks where level = 1 and first_key <= upper
    order by first_key desc limit 1);
  low_2  bytea;
  high_2 bytea;
  total  bigint;
begin
  if low_1 is null or low_1 >= high_1 then
    return (select count(*) from state where key >= low and key < upper);
  end if;
  total := (select count(*) from state where key >= low and key < low_1)
         + (select count(*) from state where key >= high_1 and key < upper);
  low_2 := (
    select first_key from state_blocks where level = 2 and first_key >= low_1
    order by first_key limit 1);
  high_2 := (
    select first_key from state_blocks where level = 2 and first_key <= high_1
    order by first_key desc limit 1);
  if low_2 is null or low_2 >= high_2 then
    return total + (select coalesce(sum(keys), 0) from state_blocks
                    where level = 1 and first_key >= low_1 and first_key < high_1);
  end if;
  return total
    + (select coalesce(sum(keys), 0) from state_blocks
       where level = 1 and first_key >= low_1 and first_key < low_2)
    + (select coalesce(sum(keys), 0) from state_blocks
       where level = 2 and first_key >= low_2 and first_key < high_2)
    + (select coalesce(sum(keys), 0) from state_blocks
       where level = 1 and first_key >= high_2 and first_key < high_1);
end $$;
