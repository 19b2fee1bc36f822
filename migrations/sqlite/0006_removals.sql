-- What the operator of the infrastructure removed because it is illegal to host: the transparency
-- log.

create table removals (
  -- Sequence number of the event that removed it.
  seq          integer primary key,
  -- As the event has it: RFC 3339, in UTC.
  ts           text not null,
  action       text not null check (action in ('state_key_removed', 'message_redacted')),
  -- One of the two.
  key          blob,
  message_id   text,
  reason       text not null,
  performed_by text not null,
  -- SHA-256 of what was removed, in hexadecimal digits.
  content_hash text not null,
  check ((key is null) <> (message_id is null))
) strict;
create index removals_key on removals (key, seq) where key is not null;
create index removals_message on removals (message_id) where message_id is not null;
