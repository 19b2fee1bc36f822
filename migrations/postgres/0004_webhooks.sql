-- What is to be pushed to webhooks, an ordered lane for each agent. The projector adds messages to
-- lanes and takes them out; the workers share the lanes out among themselves, and keep here what
-- has to outlive a worker: retries, the circuit, the bucket.

create table webhook_lanes (
  recipient      text primary key,
  -- Lanes that have yet to be tried share the slots by operator: each may turn out to be one that
  -- never answers, and a thousand of one operator must not keep another's first push waiting. All
  -- zeros: the agent is unknown.
  operator_id    uuid not null,
  -- The projector's: sequence number of the newest message, and how many are in the lane.
  last_seq       bigint not null,
  pending        bigint not null,
  -- When a worker may claim the lane; while one holds it, when its lease runs out; null: there is
  -- nothing to do.
  next_at        timestamptz,
  holder         text,
  -- Counts claims, so that a worker that was frozen past its lease changes nothing any more.
  claim          bigint not null default 0,
  -- Sequence number up to which all messages have been delivered or given up on.
  done_seq       bigint not null default 0,
  -- Failed attempts so far at the message at retried_seq.
  retried_seq    bigint not null default 0,
  attempts       integer not null default 0,
  -- What the last attempt says of the endpoint: `unknown` (there was none), `fast` (it was
  -- soon over, well or not), `slow` (it took long), `open` (the circuit is open).
  standing       text not null default 'unknown'
    check (standing in ('unknown', 'fast', 'slow', 'open')),
  -- The circuit: failures in a row, and the end of its rest where it is open.
  failures       integer not null default 0,
  open_until     timestamptz,
  -- When the bucket of outbound deliveries is full again.
  bucket_full_at timestamptz
);
create index webhook_lanes_ready on webhook_lanes (standing, next_at) where next_at is not null;
create index webhook_lanes_untried on webhook_lanes (operator_id, next_at)
  where standing = 'unknown' and next_at is not null;
create index webhook_lanes_holder on webhook_lanes (holder) where holder is not null;
-- For the metrics: what waits, and open circuits.
create index webhook_lanes_pending on webhook_lanes (recipient) where pending > 0;
create index webhook_lanes_open on webhook_lanes (open_until) where open_until is not null;

-- Seals webhook secrets where the operator has set no key.
insert into signing_keys
select 'webhook_secrets', sha256(convert_to(
  gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
