-- What is to be pushed to webhooks, an ordered lane for each agent. The projector adds messages to lanes and takes them out; the workers
-- share the lanes out among themselves, and keep here what has to outlive a worker: retries, the circuit, the bucket.

-- Encrypted. An agent with a webhook and without a secret registered before there was delivery, and goes on pulling.
alter table agents add column webhook_secret text;

-- Seals webhook secrets where the operator has set no key.
insert into signing_keys
select 'webhook_secrets',
       sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));

create index queued_messages_pushed on queued_messages (recipient, seq) where pushed;
create index queued_messages_oldest_pushed on queued_messages (seq) where pushed;

create table webhook_lanes (
  recipient      text primary key,
  -- The projector's: place of the newest message, and how many are in the lane.
  last_seq       bigint not null,
  pending        bigint not null,
  -- When a worker may claim the lane; while one holds it, when its lease runs out; null: there is nothing to do.
  next_at        timestamptz,
  holder         text,
  -- Counts claims, so that a worker that was frozen past its lease changes nothing any more.
  claim          bigint not null default 0,
  -- Place up to which all messages have been delivered or given up on.
  done_seq       bigint not null default 0,
  -- Failed attempts so far at the message at retried_seq.
  retried_seq    bigint not null default 0,
  attempts       integer not null default 0,
  -- What the last attempt says of the endpoint: `prompt` (delivered at once), `doubtful` (slow or failed), `open` (the circuit is open).
  standing       text not null default 'unknown' check (standing in ('unknown', 'prompt', 'doubtful', 'open')),
  -- The circuit: failures in a row, and the end of its rest where it is open.
  failures       integer not null default 0,
  open_until     timestamptz,
  -- When the bucket of outbound deliveries is full again.
  bucket_full_at timestamptz
);
create index webhook_lanes_ready on webhook_lanes (standing, next_at) where next_at is not null;
create index webhook_lanes_pending on webhook_lanes (recipient) where pending > 0;
create index webhook_lanes_open on webhook_lanes (open_until) where open_until is not null;
create index webhook_lanes_holder on webhook_lanes (holder) where holder is not null;

-- Claims lanes whose time has come for a worker, at most `total`, and their oldest messages, at most `turn_messages` of each. Of endpoints
-- that have yet to show what they are, or were slow or failing, no more than the worker has room for: a slot that such a one holds
-- for the whole time-out is one that a healthy one waits for. Locked rows are another worker's business.
create function claim_webhook_lanes(
  worker text, lease_ms double precision, total integer, unproven_room integer, doubtful_room integer, turn_messages integer
) returns table (lane json) language plpgsql as $$
declare
  now_at  timestamptz := clock_timestamp();
  claimed text[];
  found   text[];
  -- How many more of each kind.
  doubtful integer := least(doubtful_room, unproven_room);
  unproven integer := unproven_room;
begin
  -- Their circuit is open: their messages go to the pull queue without an attempt.
  claimed := array(select recipient from webhook_lanes
                   where standing = 'open' and next_at <= now_at and open_until > now_at
                   order by next_at limit total for update skip locked);
  total := total - cardinality(claimed);
  -- The circuit's rest is over: one probe each, and at most half of the room, so that retries go on beside them.
  found := array(select recipient from webhook_lanes
                 where standing = 'open' and next_at <= now_at and open_until <= now_at
                 order by next_at limit least((doubtful + 1) / 2, total) for update skip locked);
  claimed := claimed || found;
  total := total - cardinality(found);
  unproven := unproven - cardinality(found);
  doubtful := doubtful - cardinality(found);
  found := array(select recipient from webhook_lanes
                 where standing = 'doubtful' and next_at <= now_at
                 order by next_at limit least(doubtful, total) for update skip locked);
  claimed := claimed || found;
  total := total - cardinality(found);
  unproven := unproven - cardinality(found);
  found := array(select recipient from webhook_lanes
                 where standing = 'unknown' and next_at <= now_at
                 order by next_at limit least(unproven, total) for update skip locked);
  claimed := claimed || found;
  total := total - cardinality(found);
  claimed := claimed || array(select recipient from webhook_lanes
                              where standing = 'prompt' and next_at <= now_at
                              order by next_at limit total for update skip locked);
  return query
  with held as (
    update webhook_lanes set holder = worker, claim = claim + 1, next_at = now_at + lease_ms * interval '1 millisecond'
    where recipient = any (claimed)
    returning *
  )
  select json_build_object(
    'recipient', held.recipient, 'claim', held.claim, 'standing', held.standing, 'pending', held.pending,
    'lastSeq', held.last_seq, 'doneSeq', held.done_seq, 'retriedSeq', held.retried_seq, 'attempts', held.attempts,
    'failures', held.failures, 'openUntil', coalesce(extract(epoch from held.open_until) * 1000, 0),
    'bucketFullAt', coalesce(extract(epoch from held.bucket_full_at) * 1000, 0), 'now', extract(epoch from now_at) * 1000,
    'url', agents.webhook_url, 'sealedSecret', agents.webhook_secret,
    'messages', (select coalesce(json_agg(json_build_object('seq', message.seq, 'id', message.message_id) order by message.seq), '[]')
                 from (select m.seq, m.message_id from queued_messages m
                       where m.recipient = held.recipient and m.pushed and m.seq > held.done_seq
                       order by m.seq limit turn_messages) as message))
  from held left join agents on agents.address = held.recipient;
end $$;

-- Gives lanes back, with what their turn has changed. `turns`: [{"recipient","claim","doneSeq","retriedSeq","attempts","standing","failures",
-- "openUntil","bucketFullAt","delay"}…], times in ms since 1970, the delay until the next turn in ms. A lane whose claim has moved on is passed over.
create function release_webhook_lanes(turns json) returns void language plpgsql as $$
begin
  -- In one order, as the projector does, so that no two wait for each other.
  perform from webhook_lanes
  where recipient in (select t.recipient from json_to_recordset(turns) as t (recipient text)) order by recipient for update;
  update webhook_lanes set
    holder = null, done_seq = t."doneSeq", retried_seq = t."retriedSeq", attempts = t.attempts, standing = t.standing,
    failures = t.failures, open_until = to_timestamp(nullif(t."openUntil", 0) / 1000),
    bucket_full_at = to_timestamp(nullif(t."bucketFullAt", 0) / 1000),
    next_at = case when last_seq > t."doneSeq" then clock_timestamp() + t.delay * interval '1 millisecond' end
  from json_to_recordset(turns) as t (
    recipient text, claim bigint, "doneSeq" bigint, "retriedSeq" bigint, attempts integer, standing text, failures integer,
    "openUntil" double precision, "bucketFullAt" double precision, delay double precision)
  where webhook_lanes.recipient = t.recipient and webhook_lanes.claim = t.claim;
end $$;

-- Prolongs the leases of a worker.
create function renew_webhook_lanes(worker text, lease_ms double precision) returns void language plpgsql as $$
begin
  perform from webhook_lanes where holder = worker order by recipient for update;
  update webhook_lanes set next_at = clock_timestamp() + lease_ms * interval '1 millisecond' where holder = worker;
end $$;

drop function project_messages(json, uuid[], bigint);

-- Applies a batch: adds what was sent, moves what could not be pushed to the pull queue, takes what was delivered, and drops the oldest
-- of a queue longer than max_length. `sent`: [{"message_id","recipient","seq","pushed"}…]; `queued` (not pushed after all) and `delivered`:
-- ids, none in both. Returns how many were dropped. Called by the projector only.
create function project_messages(sent json, queued uuid[], delivered uuid[], max_length bigint) returns bigint
language plpgsql as $$
declare
  grown   text[] := array(select s.recipient from json_to_recordset(sent) as s (recipient text)
                          union select m.recipient from queued_messages m where m.message_id = any (queued));
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
    insert into webhook_lanes (recipient, last_seq, pending, next_at)
    select recipient, max(seq), sum(delta), case when max(seq) > 0 then clock_timestamp() end
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

-- As before, with `messages`: {"sent","queued","delivered"}.
create or replace function apply_events(
  lease_holder text, from_seq bigint, to_seq bigint, registry json, state json, messages json, max_queue bigint
) returns bigint language plpgsql as $$
declare
  queued    uuid[] := array(select json_array_elements_text(coalesce(messages -> 'queued', '[]'))::uuid);
  delivered uuid[] := array(select json_array_elements_text(messages -> 'delivered')::uuid);
begin
  update projections set applied_seq = to_seq
  where name = 'database' and applied_seq = from_seq and holder = lease_holder;
  if not found then return null; end if;
  if json_array_length(registry -> 'operators') + json_array_length(registry -> 'agents') > 0 then
    perform project_registry(registry -> 'operators', registry -> 'agents');
  end if;
  if json_array_length(state -> 'finals') > 0 then
    perform project_state(state -> 'finals', state -> 'settled');
  end if;
  if json_array_length(messages -> 'sent') + cardinality(queued) + cardinality(delivered) > 0 then
    return project_messages(messages -> 'sent', queued, delivered, max_queue);
  end if;
  return 0;
end $$;
