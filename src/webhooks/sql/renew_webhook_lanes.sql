-- Prolongs a worker's leases of these claims and no others: a claim whose answer never reached the
-- worker has to run out, or the lane would be nobody's for as long as that worker lives. `claims`:
-- [{"recipient","claim"}…]. Returns whose lanes they are: those that are not among them are lost.
create or replace function renew_webhook_lanes(
  worker text, claims json, lease_ms double precision
) returns setof text language plpgsql as $$
begin
  -- In one order, as the projector does.
  perform from webhook_lanes
  where recipient in (select c.recipient from json_to_recordset(claims) as c (recipient text))
  order by recipient for update;
  return query
  update webhook_lanes set next_at = clock_timestamp() + lease_ms * interval '1 millisecond'
  from json_to_recordset(claims) as c (recipient text, claim bigint)
  where webhook_lanes.recipient = c.recipient and webhook_lanes.claim = c.claim
    and webhook_lanes.holder = worker
  returning webhook_lanes.recipient;
end $$;
