-- The shared key-value store: bytea throughout, so that any UTF-8 (U+0000 too) round-trips and
-- order is byte order.

create table state (
  key          bytea primary key,
  value        bytea not null,
  -- Bytes of key and value: what the pair counts against the capacity.
  size         bigint not null,
  seq          bigint not null,
  modified_by  text not null,
  modified_at  timestamptz not null,
  -- Until then no other delete of the key begins: one that found it is under way.
  delete_until timestamptz
);
-- Agents' values are mostly small or already dense; compressing them costs more time than it saves
-- space.
alter table state alter column value set storage external;

-- One row, locked by whoever reserves or settles, so that the capacity has one order of events.
-- used_bytes is the size of all pairs. reserved_bytes is what writes under way may add to that: for
-- each key with reservations the largest of them beyond the key's present size, and all allotments.
create table state_usage (
  only_row       boolean primary key default true check (only_row),
  used_bytes     bigint not null default 0,
  reserved_bytes bigint not null default 0,
  -- Of reserved_bytes, what is in state_allotments.
  allotted_bytes bigint not null default 0,
  key_count      bigint not null default 0
);
insert into state_usage default values;

-- Writes between their check and their event's arrival in the projection, where their node had no
-- allotment for them. The oldest are looked for now and then, among the few that there are: an
-- index for that would cost every write.
create table state_reservations (
  id          uuid primary key,
  key         bytea not null,
  -- Size the pair would have after it.
  size        bigint not null,
  reserved_at timestamptz not null default clock_timestamp()
);
create index state_reservations_key on state_reservations (key);

-- Capacity that a node holds for writes to come, so that most of them ask the database for nothing
-- before the append, and for those under way until it is known that they have been applied.
create table state_allotments (
  id         uuid primary key,
  bytes      bigint not null,
  renewed_at timestamptz not null default clock_timestamp()
);

-- The key space cut into ordered blocks with the number of keys in each: level 1 over keys, level 2
-- over blocks of level 1. A block holds the keys from its first_key up to the next block's. Every
-- first_key of level 2 is one of level 1. So keys with a prefix are counted without reading them.
create table state_blocks (
  level     smallint not null check (level in (1, 2)),
  first_key bytea not null,
  keys      bigint not null,
  primary key (level, first_key)
);
insert into state_blocks values (1, '', 0), (2, '', 0);
