-- The event log of embedded storage. In a cluster the log is in JetStream and this table stays
-- empty.

create table events (
  seq         bigint primary key,
  -- Idempotency key of the append, where it had one.
  id          text,
  ts          text not null,
  type        text not null,
  agent       text,
  -- JSON; text, as jsonb cannot hold U+0000.
  data        text not null,
  -- For the projections, not part of the public event: how a message leaves or left, the place of
  -- the event that this one is about, and the reservation that a write was made on.
  via         text,
  about       bigint,
  reservation uuid
);
create index events_recent_ids on events (seq) where id is not null;
