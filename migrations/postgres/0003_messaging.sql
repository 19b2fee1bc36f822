-- Which messages of the log have not been delivered yet. Embedded storage receives from here; a
-- cluster rebuilds a lost Redis from it. The contents stay in the log.

create table queued_messages (
  message_id uuid primary key,
  recipient  text not null,
  seq        bigint not null,
  -- To be pushed to a webhook, and so not in the pull queue.
  via_webhook boolean not null
);
-- A queue in its order: who receives from it, what it drops when it is too long, and all of them,
-- page by page, when Redis is filled anew.
create index queued_messages_order on queued_messages (recipient, seq) where not via_webhook;
-- A webhook's lane in its order.
create index queued_messages_via_webhook on queued_messages (recipient, seq) where via_webhook;
-- How long the oldest push has waited, for the metrics.
create index queued_messages_oldest_via_webhook on queued_messages (seq) where via_webhook;

-- Pull queues, with their lengths, so that nobody counts their messages.
create table queues (
  recipient text primary key,
  length    bigint not null,
  -- How many were thrown away as the queue was full, so that `verify` does not miss them.
  dropped   bigint not null default 0
);
