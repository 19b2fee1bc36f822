-- What the reservations on some keys hold beyond the keys' present sizes: on each the largest.
create or replace function reserved_beyond_present(keys bytea[]) returns bigint
language sql stable as $$
  select coalesce(sum(greatest(held.size - coalesce(state.size, 0), 0)), 0)::bigint
  from (select key, max(size) as size from state_reservations
        where key = any (keys) group by key) as held
  left join state using (key)
$$;
