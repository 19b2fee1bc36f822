-- Which messages of the log have not been delivered yet. Embedded storage receives from here; a cluster rebuilds
-- a lost Redis from it. The contents stay in the log.

create table queued_messages (
  message_id uuid primary key,
  recipient  text not null,
  seq        bigint not null,
  -- To be pushed to a webhook, and so not in the pull queue.
  pushed     boolean not null
);
create index queued_messages_order on queued_messages (recipient, seq) where not pushed;
create index queued_messages_seq on queued_messages (seq);

create table queues (
  recipient text primary key,
  length    bigint not null,
  dropped   bigint not null default 0
);

-- Applies a batch: adds what was sent, takes what was delivered, and drops the oldest of a queue longer than max_length.
-- `sent`: [{"message_id","recipient","seq","pushed"}…]; `delivered`: ids. Returns how many were dropped. Called by the projector only.
create function project_messages(sent json, delivered uuid[], max_length bigint) returns bigint language plpgsql as $$
declare
  queue   record;
  surplus bigint;
begin
  with removed as (
    delete from queued_messages where message_id = any (delivered) returning recipient, pushed
  ), added as (
    insert into queued_messages (message_id, recipient, seq, pushed)
    select s.message_id, s.recipient, s.seq, s.pushed
    from json_to_recordset(sent) as s (message_id uuid, recipient text, seq bigint, pushed boolean)
    on conflict do nothing
    returning recipient, pushed
  ), changed as (
    select recipient, sum(delta) as delta
    from (select recipient, 1 as delta from added where not pushed
          union all select recipient, -1 from removed where not pushed) as deltas
    group by recipient
  )
  insert into queues (recipient, length)
  select recipient, delta from changed
  on conflict (recipient) do update set length = queues.length + excluded.length;

  surplus := 0;
  for queue in
    select q.recipient, q.length - max_length as excess
    from queues q
    where q.length > max_length
      and q.recipient in (select s.recipient from json_to_recordset(sent) as s (recipient text))
  loop
    delete from queued_messages where message_id in (
      select m.message_id from queued_messages m where m.recipient = queue.recipient and not m.pushed
      order by m.seq limit queue.excess);
    update queues set length = max_length, dropped = dropped + queue.excess where recipient = queue.recipient;
    surplus := surplus + queue.excess;
  end loop;
  return surplus;
end $$;
