-- Claims lanes whose time has come for a worker, at most `total`, and their oldest messages, at
-- most `turn_messages` of each. Of endpoints that have yet to show what they are, or were slow, no
-- more than the worker has room for: a slot that such a one holds for the whole time-out is one
-- that a healthy one waits for. Locked rows are another worker's business. `wasHeld`: the worker
-- that had the lane last did not give it back, so that what it delivered last may still be in it.
create or replace function claim_webhook_lanes(
  worker text, lease_ms double precision, total integer, unproven_quota integer,
  slow_quota integer, operator_quota integer, turn_messages integer
) returns table (lane json) language plpgsql as $$
declare
  now_at  timestamptz := clock_timestamp();
  claimed text[];
  found   text[];
  -- How many more of each kind.
  slow integer := least(slow_quota, unproven_quota);
  unproven integer := unproven_quota;
begin
  -- Where there is but one slot for both, neither is always first.
  if unproven_quota = 1 and random() < 0.5 then slow := 0; end if;
  -- Their circuit is open: their messages go to the pull queue without an attempt.
  claimed := array(select recipient from webhook_lanes
                   where standing = 'open' and next_at <= now_at and open_until > now_at
                   order by next_at limit total for update skip locked);
  total := total - cardinality(claimed);
  -- The circuit's rest is over, and so one probe each; or the last attempt took long. Those that
  -- have waited longest, of whichever kind: were one kind first, the other would never have a slot
  -- where slots come free one by one.
  found := array(
    select recipient from (
      select * from (
        select recipient, next_at from webhook_lanes
        where standing = 'open' and next_at <= now_at and open_until <= now_at
        order by next_at limit least(slow, total) for update skip locked) as probes
      union all
      select * from (
        select recipient, next_at from webhook_lanes
        where standing = 'slow' and next_at <= now_at
        order by next_at limit least(slow, total) for update skip locked) as retries
    ) as slow_lanes order by next_at limit least(slow, total));
  claimed := claimed || found;
  total := total - cardinality(found);
  unproven := unproven - cardinality(found);
  if least(unproven, total) > 0 then
    found := array(
      select untried_webhook_lanes(worker, now_at, least(unproven, total), operator_quota));
  else
    found := '{}';
  end if;
  claimed := claimed || found;
  total := total - cardinality(found);
  claimed := claimed || array(select recipient from webhook_lanes
                              where standing = 'fast' and next_at <= now_at
                              order by next_at limit total for update skip locked);
  return query
  with before as (
    select recipient, holder is not null as was_held from webhook_lanes
    where recipient = any (claimed)
  ), held as (
    update webhook_lanes set
      holder = worker, claim = claim + 1,
      next_at = now_at + lease_ms * interval '1 millisecond'
    where recipient = any (claimed)
    returning *
  )
  select json_build_object(
    'recipient', held.recipient, 'claim', held.claim, 'standing', held.standing,
    'pending', held.pending,
    'lastSeq', held.last_seq, 'doneSeq', held.done_seq, 'retriedSeq', held.retried_seq,
    'attempts', held.attempts, 'failures', held.failures,
    'openUntil', coalesce(extract(epoch from held.open_until) * 1000, 0),
    'bucketFullAt', coalesce(extract(epoch from held.bucket_full_at) * 1000, 0),
    'now', extract(epoch from now_at) * 1000, 'wasHeld', before.was_held,
    'url', agents.webhook_url, 'sealedSecret', agents.webhook_secret,
    'messages', (
      select coalesce(json_agg(
        json_build_object('seq', message.seq, 'id', message.message_id) order by message.seq), '[]')
      from (select m.seq, m.message_id from queued_messages m
            where m.recipient = held.recipient and m.via_webhook and m.seq > held.done_seq
            order by m.seq limit turn_messages) as message))
  from held join before using (recipient)
  left join agents on agents.address = held.recipient;
end $$;
