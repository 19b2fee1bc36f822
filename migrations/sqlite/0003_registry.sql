-- Operators and agents.

create table operators (
  -- Sequence number of the event that registered it.
  seq          integer primary key,
  operator_id  text not null unique,
  -- First 8 bytes of the token's SHA-256: finds the row, proves nothing. The credential is
  -- token_hash.
  token_lookup blob not null,
  token_hash   text not null,
  -- RFC 3339, in UTC, as all times here that are text.
  revoked_at   text
) strict;
create index operators_token_lookup on operators (token_lookup);
create index operators_revoked on operators (revoked_at) where revoked_at is not null;

create table agents (
  -- Also the agent's position in the registry's pages.
  seq            integer primary key,
  address        text not null unique,
  operator_id    text not null,
  token_lookup   blob not null,
  token_hash     text not null,
  -- Without user and password, which are sealed in webhook_secret.
  webhook_url    text,
  -- Encrypted. An agent without one pulls.
  webhook_secret text,
  registered_at  text not null,
  revoked_at     text
) strict;
create index agents_token_lookup on agents (token_lookup);
create index agents_revoked on agents (revoked_at) where revoked_at is not null;
create index agents_with_webhook on agents (address) where webhook_secret is not null;

-- One row, so that a page of the registry says how many agents there are without counting them.
create table registry_totals (
  only_row           integer primary key default 1 check (only_row = 1),
  agents             integer not null default 0,
  -- The clock may be set back; the registry's times follow its order all the same.
  last_registered_at text not null default ''
) strict;
insert into registry_totals default values;

-- What a registration has to answer first. Not in the log: one that is lost is asked for anew.
create table challenges (
  challenge_id text primary key,
  operator_id  text not null,
  -- SHA-256 of the right answer; null where any answer passes.
  answer_hash  blob,
  -- Milliseconds since 1970.
  expires_at   integer not null
) strict, without rowid;
create index challenges_expiry on challenges (expires_at);
create index challenges_operator on challenges (operator_id, expires_at);

-- Keys that never leave the database: the one that seals the cursors of pages, and the one of
-- webhook secrets where there is none in the settings.
create table signing_keys (
  name text primary key,
  key  blob not null
) strict, without rowid;
insert into signing_keys values ('cursor', randomblob(32)), ('webhook_secrets', randomblob(32));
