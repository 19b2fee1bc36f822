-- Adds what a batch removes. `changes`: "removals" [{"seq","ts","action","key" (base64) or
-- "message_id","reason","performed_by","content_hash"}…].
create or replace function project_removals(changes json) returns bigint language plpgsql as $$
begin
  insert into removals (seq, ts, action, key, message_id, reason, performed_by, content_hash)
  select r.seq, r.ts, r.action, decode(r.key, 'base64'), r.message_id, r.reason, r.performed_by,
         r.content_hash
  from json_to_recordset(changes -> 'removals')
    as r (seq bigint, ts text, action text, key text, message_id text, reason text,
          performed_by text, content_hash text);
  return 0;
end $$;
