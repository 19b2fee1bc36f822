-- Gives lanes back, with what their turn has changed. `turns`: [{"recipient","claim","doneSeq",
-- "retriedSeq","attempts","standing","failures","openUntil","bucketFullAt","delay"}…], times in ms
-- since 1970, the delay until the next turn in ms. A lane whose claim has moved on is passed over.
create or replace function release_webhook_lanes(turns json) returns void language plpgsql as $$
begin
  -- In one order, as the projector does, so that no two wait for each other.
  perform from webhook_lanes
  where recipient in (select t.recipient from json_to_recordset(turns) as t (recipient text))
  order by recipient for update;
  update webhook_lanes set
    holder = null, done_seq = t."doneSeq", retried_seq = t."retriedSeq", attempts = t.attempts,
    standing = t.standing, failures = t.failures,
    open_until = to_timestamp(nullif(t."openUntil", 0) / 1000),
    bucket_full_at = to_timestamp(nullif(t."bucketFullAt", 0) / 1000),
    next_at = case when last_seq > t."doneSeq"
                   then clock_timestamp() + t.delay * interval '1 millisecond' end
  from json_to_recordset(turns) as t (
    recipient text, claim bigint, "doneSeq" bigint, "retriedSeq" bigint, attempts integer,
    standing text, failures integer, "openUntil" double precision,
    "bucketFullAt" double precision, delay double precision)
  where webhook_lanes.recipient = t.recipient and webhook_lanes.claim = t.claim;
end $$;
