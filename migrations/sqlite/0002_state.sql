-- The shared key-value store. Blobs, so that any UTF-8 (U+0000 too) round-trips and order is byte
-- order.

create table state (
  -- Not the primary key: values are in the rows, and keys are listed from an index that has none.
  key         blob not null unique,
  value       blob not null,
  seq         integer not null,
  modified_by text not null,
  -- RFC 3339, in UTC.
  modified_at text not null
) strict;

create table state_usage (
  only_row   integer primary key default 1 check (only_row = 1),
  -- Bytes of all keys and values.
  used_bytes integer not null default 0,
  key_count  integer not null default 0
) strict;
insert into state_usage default values;

-- The key space cut into ordered blocks with the number of keys in each: level 1 over keys, level 2
-- over blocks of level 1. A block holds the keys from its first_key up to the next block's. Every
-- first_key of level 2 is one of level 1.
create table state_blocks (
  level     integer not null check (level in (1, 2)),
  first_key blob not null,
  keys      integer not null,
  primary key (level, first_key)
) strict, without rowid;
insert into state_blocks values (1, x'', 0), (2, x'', 0);
