-- Applies the last change of each key of a batch and settles the reservations that its writes were
-- made on. `changes`: "finals" [{"key","value" (both base64; value null: the key is gone),"deleted"
-- (whether or not it was written again),"seq","by","at"}…], one a key, and "reservations", their
-- ids.
create or replace function project_state(changes json) returns bigint language plpgsql as $$
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
  select array_agg(decode(f.key, 'base64')), array_agg(decode(f.value, 'base64')),
         array_agg(f.deleted), array_agg(f.seq), array_agg(f.by), array_agg(f.at)
  into keys, contents, deleted, seqs, authors, times
  from json_to_recordset(changes -> 'finals')
    as f (key text, value text, deleted boolean, seq bigint, by text, at timestamptz);
  select coalesce(array_agg(key), '{}'), coalesce(sum(size), 0) into before, bytes_before
  from state where key = any (keys);
  select coalesce(sum(on_key.reservations), 0),
         coalesce(sum(greatest(on_key.size - coalesce(state.size, 0), 0)), 0)
  into held, reserved_before
  from (select key, max(size) as size, count(*) as reservations from state_reservations
        where key = any (keys) group by key) as on_key
  left join state using (key);
  -- Looked up in a hash table: by `any`, each would be compared with all the others.
  select array_agg(f.key) filter (where f.value is not null and not f.was_there),
         array_agg(f.key) filter (where f.deleted and f.was_there),
         array_agg(f.key) filter (where f.value is null and f.was_there),
         coalesce(sum(octet_length(f.key) + octet_length(f.value)), 0)
  into added, removed, gone, bytes_after
  from (select key, value, is_deleted as deleted, key in (select unnest(before)) as was_there
        from unnest(keys, contents, deleted) as each (key, value, is_deleted)) as f;

  -- Also of a key that is written again: no delete has found the new row.
  if removed is not null then
    delete from state where key = any (removed);
  end if;
  insert into state (key, value, size, seq, modified_by, modified_at)
  select f.key, f.value, octet_length(f.key) + octet_length(f.value), f.seq, f.author, f.time
  from unnest(keys, contents, seqs, authors, times) as f (key, value, seq, author, time)
  where f.value is not null
  on conflict (key) do update set
    value = excluded.value, size = excluded.size, seq = excluded.seq,
    modified_by = excluded.modified_by, modified_at = excluded.modified_at;

  if held > 0 then
    delete from state_reservations
    where id in (select json_array_elements_text(changes -> 'reservations')::uuid);
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
  return 0;
end $$;
