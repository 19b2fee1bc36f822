-- The event log of embedded storage: append-only, one total order.

create table events (
  seq   integer primary key,
  -- RFC 3339, in UTC.
  ts    text not null,
  type  text not null,
  agent text,
  -- JSON.
  data  text not null,
  -- How a message leaves or left, and the sequence number of the event that this one is about: for
  -- the projections, not part of the public event.
  via   text,
  about integer
) strict;

-- Ids of appends, so that a retry is stored once. Those that are too old to be asked for are
-- removed.
create table event_ids (
  id         text primary key,
  seq        integer not null,
  -- Milliseconds since 1970.
  expires_at integer not null
) strict, without rowid;
create index event_ids_expiry on event_ids (expires_at);
