-- As postgres.sql, which has the comments.

create table position (
  only_row           integer primary key default 1 check (only_row = 1),
  applied_seq        integer not null default 0,
  agents             integer not null default 0,
  keys               integer not null default 0,
  last_registered_at integer not null default 0
) strict;
insert into position default values;

create table agents (
  id                integer primary key,
  address           text not null unique,
  registered_at     integer not null,
  messages_sent     integer not null default 0,
  messages_received integer not null default 0,
  state_writes      integer not null default 0,
  last_active       integer
) strict;
create index agents_busiest on agents (messages_sent + messages_received, id);

create table edges (
  sender    integer not null,
  recipient integer not null,
  count     integer not null,
  last_seq  integer not null,
  primary key (sender, recipient)
) strict, without rowid;
create index edges_heaviest on edges (count, sender, recipient);
create index edges_recipient on edges (recipient, count);

create table events (
  seq       integer primary key,
  at        integer not null,
  type      integer not null,
  agent     integer,
  nth       integer not null,
  agent_nth integer,
  keys      integer
) strict;
create index events_type on events (type, seq);
create index events_agent on events (agent, type, seq) where agent is not null;

create table totals (
  type  integer primary key,
  count integer not null
) strict;

create table messages (
  sender    integer not null,
  recipient integer not null,
  seq       integer not null,
  nth       integer not null,
  received  integer not null,
  primary key (sender, recipient, seq)
) strict, without rowid;
create index messages_recipient on messages (recipient, seq);

create table activity (
  agent     integer not null,
  span      integer not null,
  start     integer not null,
  type      integer not null,
  count     integer not null,
  first_seq integer not null,
  primary key (agent, span, start, type)
) strict, without rowid;

create table key_versions (
  key    blob not null,
  seq    integer not null,
  type   integer not null,
  author integer,
  at     integer not null,
  length integer,
  primary key (key, seq)
) strict, without rowid;
