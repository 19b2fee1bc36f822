-- Which messages of the log have not been delivered yet, and how many an agent has.

create table queued_messages (
  -- Sequence number of the event that sent it, which has the content.
  seq        integer primary key,
  message_id text not null,
  recipient  text not null,
  -- To be pushed to a webhook, and so not in the pull queue.
  via_webhook integer not null check (via_webhook in (0, 1))
) strict;
create index queued_messages_order on queued_messages (recipient, via_webhook, seq);
create index queued_messages_oldest_via_webhook on queued_messages (seq) where via_webhook = 1;

create table queues (
  recipient text primary key,
  length    integer not null,
  dropped   integer not null default 0
) strict, without rowid;
