-- The read models of the observation service, in a schema of its own. All of it follows from the
-- log: where this file has changed it is built anew. Times are milliseconds since 1970, spans and
-- their starts seconds.

-- One row: how far the log has been read.
create table position (
  only_row           boolean primary key default true check (only_row),
  applied_seq        bigint not null default 0,
  agents             bigint not null default 0,
  keys               bigint not null default 0,
  last_registered_at bigint not null default 0
);
insert into position default values;

-- Which process reads it, as in the kernel's table of that name.
create table leases (
  name       text primary key,
  holder     text,
  expires_at timestamptz not null default '-infinity'
);
insert into leases (name) values ('observer');

create table agents (
  -- Sequence number of its registration: the order of the registry.
  id                bigint primary key,
  -- By bytes, so that the index finds what begins so.
  address           text collate "C" not null unique,
  registered_at     bigint not null,
  messages_sent     bigint not null default 0,
  -- Addressed to it.
  messages_received bigint not null default 0,
  state_writes      bigint not null default 0,
  last_active       bigint
);
create index agents_busiest on agents ((messages_sent + messages_received), id);

-- Who wrote to whom, how often, and the sequence number of the last message.
create table edges (
  sender    bigint not null,
  recipient bigint not null,
  count     bigint not null,
  last_seq  bigint not null,
  primary key (sender, recipient)
);
create index edges_heaviest on edges (count, sender, recipient);
create index edges_recipient on edges (recipient, count);

-- Where in the log events of a type, and of an agent, are; and the figures as they were after each,
-- so that those of any moment take one look at an index: the event is the nth of its type, and the
-- agent_nth of its agent's messages or writes; after a change of a key there were so many keys. A
-- delivery that was pushed is of the type 12 here, which is no deed of its agent.
create table events (
  seq       bigint primary key,
  at        bigint not null,
  type      smallint not null,
  agent     bigint,
  nth       bigint not null,
  agent_nth bigint,
  keys      bigint
);
create index events_type on events (type, seq);
create index events_agent on events (agent, type, seq) where agent is not null;

-- How many events of each type there are.
create table totals (
  type  smallint primary key,
  count bigint not null
);

-- The messages from each agent to each: of this pair the nth, and of all that the recipient was
-- sent the received-th.
create table messages (
  sender    bigint not null,
  recipient bigint not null,
  seq       bigint not null,
  nth       bigint not null,
  received  bigint not null,
  primary key (sender, recipient, seq)
);
create index messages_recipient on messages (recipient, seq);

-- How many events of a type there were in a span of time, and the first of them; agent 0:
-- anybody's.
create table activity (
  agent     bigint not null,
  span      integer not null,
  start     bigint not null,
  type      smallint not null,
  count     bigint not null,
  first_seq bigint not null,
  primary key (agent, span, start, type)
);

-- What became of each key, and when.
create table key_versions (
  key    bytea not null,
  seq    bigint not null,
  type   smallint not null,
  author bigint,
  at     bigint not null,
  -- Bytes of the value; null where the key was deleted or removed.
  length bigint,
  primary key (key, seq)
);
