-- Operators and agents. A row is staged with its credential first; the projector activates it when it reads the event that
-- registers it, by giving it that event's place in the log. A row without `seq` is nobody yet.

create table operators (
  operator_id  uuid primary key,
  -- First 8 bytes of the token's SHA-256: finds the row, proves nothing. The credential is token_hash.
  token_lookup bytea not null,
  token_hash   text not null,
  staged_at    timestamptz not null default now(),
  seq          bigint unique,
  revoked_at   timestamptz
);
create index operators_token_lookup on operators (token_lookup);
create index operators_staged on operators (staged_at) where seq is null;

create table agents (
  address       text primary key,
  operator_id   uuid not null,
  token_lookup  bytea not null,
  token_hash    text not null,
  webhook_url   text,
  staged_at     timestamptz not null default now(),
  seq           bigint unique,
  registered_at timestamptz,
  revoked_at    timestamptz
);
create index agents_token_lookup on agents (token_lookup);
create index agents_staged on agents (staged_at) where seq is null;

create table registry_totals (
  only_row boolean primary key default true check (only_row),
  agents   bigint not null default 0,
  -- Clocks of nodes differ a little; the registry's times follow its order all the same.
  last_registered_at timestamptz not null default '-infinity'
);
insert into registry_totals default values;

create table challenges (
  challenge_id uuid primary key,
  operator_id  uuid not null,
  -- SHA-256 of the right answer; null where any answer passes.
  answer_hash  bytea,
  expires_at   timestamptz not null
);
create index challenges_expiry on challenges (expires_at);

-- Keys that all nodes share and that never leave the database, such as the one that seals cursors.
create table signing_keys (
  name text primary key,
  key  bytea not null
);
insert into signing_keys
select 'cursor', sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));

-- How far each projection kept in this database has read the log, and which process may advance it until when.
create table projections (
  name             text primary key,
  applied_seq      bigint not null default 0,
  holder           text,
  lease_expires_at timestamptz
);
insert into projections (name) values ('database');
