-- Applies a batch: adds what was sent, moves what could not be pushed to the pull queue, takes what
-- was delivered, and drops the oldest of a queue longer than "max_length". `changes`, beside that:
-- "sent" [{"message_id","recipient","seq","via_webhook"}…]; "queued" (not pushed after all) and
-- "delivered", ids, none in both. Returns how many were dropped.
create or replace function project_messages(changes json) returns bigint language plpgsql as $$
declare
  sent       json := changes -> 'sent';
  queued     uuid[] := array(select json_array_elements_text(changes -> 'queued')::uuid);
  delivered  uuid[] := array(select json_array_elements_text(changes -> 'delivered')::uuid);
  max_length bigint := changes ->> 'max_length';
  grown   text[] := array(
    select s.recipient from json_to_recordset(sent) as s (recipient text)
    union select m.recipient from queued_messages m where m.message_id = any (queued));
  -- Whose lanes those of unknown agents are.
  nobody  constant uuid := '00000000-0000-0000-0000-000000000000';
  queue   record;
  surplus bigint;
begin
  -- In one order, as the workers do, so that no two wait for each other.
  perform from webhook_lanes where recipient in (
    select s.recipient from json_to_recordset(sent) as s (recipient text, via_webhook boolean)
    where s.via_webhook
    union select m.recipient from queued_messages m
    where m.message_id = any (queued || delivered) and m.via_webhook)
  order by recipient for update;

  with removed as (
    delete from queued_messages where message_id = any (delivered) returning recipient, via_webhook
  ), moved as (
    update queued_messages set via_webhook = false where message_id = any (queued) and via_webhook
    returning recipient
  ), added as (
    insert into queued_messages (message_id, recipient, seq, via_webhook)
    select s.message_id, s.recipient, s.seq, s.via_webhook
    from json_to_recordset(sent)
      as s (message_id uuid, recipient text, seq bigint, via_webhook boolean)
    on conflict do nothing
    returning recipient, seq, via_webhook
  ), lanes as (
    insert into webhook_lanes (recipient, last_seq, pending, next_at, operator_id)
    select recipient, max(seq), sum(delta), case when max(seq) > 0 then clock_timestamp() end,
           coalesce((select a.operator_id from agents a where a.address = recipient), nobody)
    from (select recipient, seq, 1 as delta from added where via_webhook
          union all select recipient, 0, -1 from removed where via_webhook
          union all select recipient, 0, -1 from moved) as deltas
    group by recipient order by recipient
    on conflict (recipient) do update set
      last_seq = greatest(webhook_lanes.last_seq, excluded.last_seq),
      pending = webhook_lanes.pending + excluded.pending,
      next_at = coalesce(webhook_lanes.next_at, excluded.next_at)
  ), changed as (
    select recipient, sum(delta) as delta
    from (select recipient, 1 as delta from added where not via_webhook
          union all select recipient, 1 from moved
          union all select recipient, -1 from removed where not via_webhook) as deltas
    group by recipient
  )
  insert into queues (recipient, length)
  select recipient, delta from changed
  on conflict (recipient) do update set length = queues.length + excluded.length;

  surplus := 0;
  for queue in
    select q.recipient, q.length - max_length as excess
    from queues q
    where q.length > max_length and q.recipient = any (grown)
  loop
    delete from queued_messages where message_id in (
      select m.message_id from queued_messages m
      where m.recipient = queue.recipient and not m.via_webhook
      order by m.seq limit queue.excess);
    update queues set length = max_length, dropped = dropped + queue.excess
    where recipient = queue.recipient;
    surplus := surplus + queue.excess;
  end loop;
  return surplus;
end $$;
