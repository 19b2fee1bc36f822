-- Lanes that have yet to be tried share their slots by operator: each may turn out to be one that never answers, and a thousand of one
-- operator must not keep the first push of another waiting until all have timed out.

alter table webhook_lanes add column operator_id uuid not null default '00000000-0000-0000-0000-000000000000';
update webhook_lanes set operator_id = agents.operator_id from agents where agents.address = webhook_lanes.recipient;
alter table webhook_lanes alter column operator_id drop default;
create index webhook_lanes_untried on webhook_lanes (operator_id, next_at)
  where standing = 'unknown' and next_at is not null;

-- Locks at most `room` lanes that have yet to be tried, of operators by turns: those first of whose lanes the worker has the fewest. It
-- has no more than `operator_room` of one operator at a time.
-- Looks at as many operators as there may be ones that hold a slot already, and as many more as there is room for, from a random one on: it
-- costs in proportion to the worker's slots, however many lanes and operators wait, and none is passed over for ever.
create function untried_webhook_lanes(
  worker text, now_at timestamptz, room integer, operator_room integer
) returns setof text language sql as $$
  with recursive held as materialized (
    select operator_id, count(*)::integer as lanes from webhook_lanes
    where holder = worker and standing = 'unknown' and next_at > now_at group by operator_id
  ), places as materialized (
    select gen_random_uuid() as first, room + (select count(*) from held) as most
  ), after_first (operator_id, place) as (
    (select l.operator_id, 1 from webhook_lanes l, places
     where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id >= places.first
     order by l.operator_id limit 1)
    union all
    select following.operator_id, after_first.place + 1
    from after_first cross join places cross join lateral (
      select l.operator_id from webhook_lanes l
      where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id > after_first.operator_id
      order by l.operator_id limit 1) as following
    where after_first.place < places.most
  ), before_first (operator_id, place) as (
    (select l.operator_id, 1 from webhook_lanes l, places
     where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id < places.first
       and (select count(*) from after_first) < places.most
     order by l.operator_id limit 1)
    union all
    select following.operator_id, before_first.place + 1
    from before_first cross join places cross join lateral (
      select l.operator_id from webhook_lanes l
      where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id > before_first.operator_id
        and l.operator_id < places.first
      order by l.operator_id limit 1) as following
    where before_first.place + (select count(*) from after_first) < places.most
  ), operators as (
    select operator_id, coalesce(held.lanes, 0) as lanes
    from (select operator_id from after_first union all select operator_id from before_first) as waiting
    left join held using (operator_id)
  ), turns as (
    select operators.operator_id, lanes + nth as turn
    from operators cross join lateral (
      select row_number() over () as nth from (
        select 1 from webhook_lanes l
        where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id = operators.operator_id
        order by l.operator_id, l.next_at limit least(room, greatest(0, operator_room - lanes))) as due) as ready
    order by turn, random() limit room
  ), shares as materialized (
    select operator_id, count(*) as lanes from turns group by operator_id
  )
  select lane.recipient from shares cross join lateral (
    select l.recipient from webhook_lanes l
    where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id = shares.operator_id
    order by l.next_at limit shares.lanes for update skip locked) as lane
$$;

-- As before, but that lanes which have yet to be tried share their slots by operator, and that a probe or a retry does not always take the
-- only slot before them. The function that knows no `operator_room` stays for workers of the version before, until they are replaced.
create function claim_webhook_lanes(
  worker text, lease_ms double precision, total integer, unproven_room integer, doubtful_room integer,
  operator_room integer, turn_messages integer
) returns table (lane json) language plpgsql as $$
declare
  now_at  timestamptz := clock_timestamp();
  claimed text[];
  found   text[];
  -- How many more of each kind.
  doubtful integer := least(doubtful_room, unproven_room);
  unproven integer := unproven_room;
begin
  -- Where there is but one slot for both, neither is always first.
  if unproven_room = 1 and random() < 0.5 then doubtful := 0; end if;
  -- Their circuit is open: their messages go to the pull queue without an attempt.
  claimed := array(select recipient from webhook_lanes
                   where standing = 'open' and next_at <= now_at and open_until > now_at
                   order by next_at limit total for update skip locked);
  total := total - cardinality(claimed);
  -- The circuit's rest is over, and so one probe each; or the last attempt took long. Those that have waited longest, of whichever kind: were
  -- one kind first, the other would never have a slot where slots come free one by one.
  found := array(select recipient from (
                   select * from (select recipient, next_at from webhook_lanes
                                  where standing = 'open' and next_at <= now_at and open_until <= now_at
                                  order by next_at limit least(doubtful, total) for update skip locked) as probes
                   union all
                   select * from (select recipient, next_at from webhook_lanes
                                  where standing = 'doubtful' and next_at <= now_at
                                  order by next_at limit least(doubtful, total) for update skip locked) as retries
                 ) as doubtful_lanes order by next_at limit least(doubtful, total));
  claimed := claimed || found;
  total := total - cardinality(found);
  unproven := unproven - cardinality(found);
  if least(unproven, total) > 0 then
    found := array(select untried_webhook_lanes(worker, now_at, least(unproven, total), operator_room));
  else
    found := '{}';
  end if;
  claimed := claimed || found;
  total := total - cardinality(found);
  claimed := claimed || array(select recipient from webhook_lanes
                              where standing = 'prompt' and next_at <= now_at
                              order by next_at limit total for update skip locked);
  return query
  with before as (
    select recipient, holder is not null as was_held from webhook_lanes where recipient = any (claimed)
  ), held as (
    update webhook_lanes set holder = worker, claim = claim + 1, next_at = now_at + lease_ms * interval '1 millisecond'
    where recipient = any (claimed)
    returning *
  )
  select json_build_object(
    'recipient', held.recipient, 'claim', held.claim, 'standing', held.standing, 'pending', held.pending,
    'lastSeq', held.last_seq, 'doneSeq', held.done_seq, 'retriedSeq', held.retried_seq, 'attempts', held.attempts,
    'failures', held.failures, 'openUntil', coalesce(extract(epoch from held.open_until) * 1000, 0),
    'bucketFullAt', coalesce(extract(epoch from held.bucket_full_at) * 1000, 0), 'now', extract(epoch from now_at) * 1000,
    'wasHeld', before.was_held, 'url', agents.webhook_url, 'sealedSecret', agents.webhook_secret,
    'messages', (select coalesce(json_agg(json_build_object('seq', message.seq, 'id', message.message_id) order by message.seq), '[]')
                 from (select m.seq, m.message_id from queued_messages m
                       where m.recipient = held.recipient and m.pushed and m.seq > held.done_seq
                       order by m.seq limit turn_messages) as message))
  from held join before using (recipient) left join agents on agents.address = held.recipient;
end $$;

-- As before, and says whose lane it is.
create or replace function project_messages(sent json, queued uuid[], delivered uuid[], max_length bigint) returns bigint
language plpgsql as $$
declare
  grown   text[] := array(select s.recipient from json_to_recordset(sent) as s (recipient text)
                          union select m.recipient from queued_messages m where m.message_id = any (queued));
  -- Whose lanes those of unknown agents are.
  nobody  constant uuid := '00000000-0000-0000-0000-000000000000';
  queue   record;
  surplus bigint;
begin
  -- In one order, as the workers do.
  perform from webhook_lanes where recipient in (
    select s.recipient from json_to_recordset(sent) as s (recipient text, pushed boolean) where s.pushed
    union select m.recipient from queued_messages m where m.message_id = any (queued || delivered) and m.pushed)
  order by recipient for update;

  with removed as (
    delete from queued_messages where message_id = any (delivered) returning recipient, pushed
  ), moved as (
    update queued_messages set pushed = false where message_id = any (queued) and pushed returning recipient
  ), added as (
    insert into queued_messages (message_id, recipient, seq, pushed)
    select s.message_id, s.recipient, s.seq, s.pushed
    from json_to_recordset(sent) as s (message_id uuid, recipient text, seq bigint, pushed boolean)
    on conflict do nothing
    returning recipient, seq, pushed
  ), lanes as (
    insert into webhook_lanes (recipient, last_seq, pending, next_at, operator_id)
    select recipient, max(seq), sum(delta), case when max(seq) > 0 then clock_timestamp() end,
           coalesce((select a.operator_id from agents a where a.address = recipient), nobody)
    from (select recipient, seq, 1 as delta from added where pushed
          union all select recipient, 0, -1 from removed where pushed
          union all select recipient, 0, -1 from moved) as deltas
    group by recipient order by recipient
    on conflict (recipient) do update set
      last_seq = greatest(webhook_lanes.last_seq, excluded.last_seq),
      pending = webhook_lanes.pending + excluded.pending,
      next_at = coalesce(webhook_lanes.next_at, excluded.next_at)
  ), changed as (
    select recipient, sum(delta) as delta
    from (select recipient, 1 as delta from added where not pushed
          union all select recipient, 1 from moved
          union all select recipient, -1 from removed where not pushed) as deltas
    group by recipient
  )
  insert into queues (recipient, length)
  select recipient, delta from changed
  on conflict (recipient) do update set length = queues.length + excluded.length;

  surplus := 0;
  for queue in
    select q.recipient, q.length - max_length as excess
    from queues q
    where q.length > max_length and q.recipient = any (grown)
  loop
    delete from queued_messages where message_id in (
      select m.message_id from queued_messages m where m.recipient = queue.recipient and not m.pushed
      order by m.seq limit queue.excess);
    update queues set length = max_length, dropped = dropped + queue.excess where recipient = queue.recipient;
    surplus := surplus + queue.excess;
  end loop;
  return surplus;
end $$;
