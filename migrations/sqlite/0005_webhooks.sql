-- What is to be pushed to webhooks, an ordered lane for each agent. Times are milliseconds since
-- 1970.

create table webhook_lanes (
  recipient      text primary key,
  operator_id    text not null,
  -- The projection's: sequence number of the newest message, and how many are in the lane.
  last_seq       integer not null,
  pending        integer not null,
  -- When a worker may claim the lane; while one holds it, when its lease runs out; null: there is
  -- nothing to do.
  next_at        integer,
  holder         text,
  -- Counts claims, so that a worker that was frozen past its lease changes nothing any more.
  claim          integer not null default 0,
  -- Sequence number up to which all messages have been delivered or given up on.
  done_seq       integer not null default 0,
  -- Failed attempts so far at the message at retried_seq.
  retried_seq    integer not null default 0,
  attempts       integer not null default 0,
  -- What the last attempt says of the endpoint.
  standing       text not null default 'unknown' check (standing in ('unknown', 'fast', 'slow', 'open')),
  -- The circuit: failures in a row, and the end of its rest where it is open.
  failures       integer not null default 0,
  open_until     integer,
  -- When the bucket of outbound deliveries is full again.
  bucket_full_at integer
) strict, without rowid;
create index webhook_lanes_ready on webhook_lanes (standing, next_at) where next_at is not null;
create index webhook_lanes_untried on webhook_lanes (operator_id, next_at)
  where standing = 'unknown' and next_at is not null;
create index webhook_lanes_open on webhook_lanes (open_until) where standing = 'open';
-- Those of them that have something to do.
create index webhook_lanes_open_ready on webhook_lanes (open_until) where standing = 'open' and next_at is not null;

-- One row, so that nobody looks through the lanes for it.
create table webhook_totals (
  only_row integer primary key default 1 check (only_row = 1),
  -- Messages in all lanes.
  pending  integer not null default 0
) strict;
insert into webhook_totals default values;
