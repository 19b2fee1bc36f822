-- How far each projection kept in this database has read the log, and which process may advance it
-- until when. The position moves in the transaction that applies what is before it.
create table projections (
  name             text primary key,
  applied_seq      bigint not null default 0,
  holder           text,
  lease_expires_at timestamptz
);
insert into projections (name) values ('database');
