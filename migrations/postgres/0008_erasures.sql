-- Messages of the event log's stream that an administrator erased there, and what is left of them.
-- A message that is missing and not here is lost, and nothing behind it is served.

create table erasures (
  -- Sequence number of the message in the stream.
  message   bigint primary key,
  -- All its events, one JSON object a line, as readers get them from now on.
  lines     text not null,
  reason    text not null,
  erased_at timestamptz not null default now()
);
