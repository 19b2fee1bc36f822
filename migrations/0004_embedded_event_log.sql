-- The event log of embedded storage. In a cluster the log is in JetStream and this table stays empty.

create table events (
  seq   bigint primary key,
  -- Idempotency key of the append, where it had one.
  id    text,
  ts    text not null,
  type  text not null,
  agent text,
  -- JSON; text, as jsonb cannot hold U+0000.
  data  text not null,
  -- How a message leaves or left, and the place of the event that this one is about: for the projections, not part of the public event.
  via   text,
  about bigint
);
create index events_recent_ids on events (seq) where id is not null;
