-- What one process at a time does, which holds a lease by the clock here.
create table leases (
  name       text primary key,
  holder     text,
  expires_at timestamptz not null default '-infinity'
);
insert into leases (name) values ('maintenance');
