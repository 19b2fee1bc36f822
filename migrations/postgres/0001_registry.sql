-- Operators and agents. A row is staged with its credential first, as the log holds none; the
-- projector activates it when it reads the event that registers it, by giving it that event's
-- sequence number. A row without `seq` is nobody yet, and is removed if its event never comes.

create table operators (
  operator_id  uuid primary key,
  -- First 8 bytes of the token's SHA-256: finds the row, proves nothing. The credential is
  -- token_hash.
  token_lookup bytea not null,
  token_hash   text not null,
  staged_at    timestamptz not null default now(),
  seq          bigint unique,
  revoked_at   timestamptz
);
create index operators_token_lookup on operators (token_lookup);
create index operators_staged on operators (staged_at) where seq is null;

create table agents (
  address        text primary key,
  operator_id    uuid not null,
  -- As an operator's.
  token_lookup   bytea not null,
  token_hash     text not null,
  -- Without user and password, which are sealed in webhook_secret.
  webhook_url    text,
  -- Encrypted. An agent without one pulls.
  webhook_secret text,
  staged_at      timestamptz not null default now(),
  -- Also the agent's position in the registry's pages.
  seq            bigint unique,
  registered_at  timestamptz,
  revoked_at     timestamptz
);
create index agents_token_lookup on agents (token_lookup);
create index agents_staged on agents (staged_at) where seq is null;
-- Those with a webhook, page by page, when their secrets are sealed under another key.
create index agents_with_webhook on agents (address) where webhook_secret is not null;

-- One row, so that a page of the registry says how many agents there are without counting them.
create table registry_totals (
  only_row boolean primary key default true check (only_row),
  agents   bigint not null default 0,
  -- Clocks of nodes differ a little; the registry's times follow its order all the same.
  last_registered_at timestamptz not null default '-infinity'
);
insert into registry_totals default values;

-- What a registration has to answer first. Not in the log: one that is lost is asked for anew.
create table challenges (
  challenge_id uuid primary key,
  operator_id  uuid not null,
  -- SHA-256 of the right answer; null where any answer passes.
  answer_hash  bytea,
  expires_at   timestamptz not null,
  -- Says how long it lasts; and by a time that is yet to come, that the clock was set back since.
  issued_at    timestamptz not null default clock_timestamp()
);
create index challenges_expiry on challenges (expires_at);
-- Finds the oldest challenges of one operator, beyond the number that it may have open, among its
-- own alone.
create index challenges_operator on challenges (operator_id, expires_at desc, challenge_id);

-- Keys that all nodes share and that never leave the database.
create table signing_keys (
  name text primary key,
  key  bytea not null
);
-- Seals the cursors of pages.
insert into signing_keys
select 'cursor', sha256(convert_to(
  gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
