-- Locks at most `quota` lanes that have yet to be tried, of operators by turns: those first of
-- whose lanes the worker has the fewest. It has no more than `operator_quota` of one operator at a
-- time. Looks at as many operators as there may be ones that hold a slot already, and as many more
-- as there is room for, from a random one on: it costs in proportion to the worker's slots, however
-- many lanes and operators wait, and none is passed over for ever.
create or replace function untried_webhook_lanes(
  worker text, now_at timestamptz, quota integer, operator_quota integer
) returns setof text language sql as $$
  with recursive held as materialized (
    select operator_id, count(*)::integer as lanes from webhook_lanes
    where holder = worker and standing = 'unknown' and next_at > now_at group by operator_id
  ), places as materialized (
    select gen_random_uuid() as first, quota + (select count(*) from held) as most
  ), after_first (operator_id, place) as (
    (select l.operator_id, 1 from webhook_lanes l, places
     where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id >= places.first
     order by l.operator_id limit 1)
    union all
    select following.operator_id, after_first.place + 1
    from after_first cross join places cross join lateral (
      select l.operator_id from webhook_lanes l
      where l.standing = 'unknown' and l.next_at <= now_at
        and l.operator_id > after_first.operator_id
      order by l.operator_id limit 1) as following
    where after_first.place < places.most
  ), before_first (operator_id, place) as (
    (select l.operator_id, 1 from webhook_lanes l, places
     where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id < places.first
       and (select count(*) from after_first) < places.most
     order by l.operator_id limit 1)
    union all
    select following.operator_id, before_first.place + 1
    from before_first cross join places cross join lateral (
      select l.operator_id from webhook_lanes l
      where l.standing = 'unknown' and l.next_at <= now_at
        and l.operator_id > before_first.operator_id and l.operator_id < places.first
      order by l.operator_id limit 1) as following
    where before_first.place + (select count(*) from after_first) < places.most
  ), operators as (
    select operator_id, coalesce(held.lanes, 0) as lanes
    from (select operator_id from after_first
          union all select operator_id from before_first) as waiting
    left join held using (operator_id)
  ), turns as (
    select operators.operator_id, lanes + nth as turn
    from operators cross join lateral (
      select row_number() over () as nth from (
        select 1 from webhook_lanes l
        where l.standing = 'unknown' and l.next_at <= now_at
          and l.operator_id = operators.operator_id
        order by l.operator_id, l.next_at
        limit least(quota, greatest(0, operator_quota - lanes))) as due) as ready
    order by turn, random() limit quota
  ), shares as materialized (
    select operator_id, count(*) as lanes from turns group by operator_id
  )
  select lane.recipient from shares cross join lateral (
    select l.recipient from webhook_lanes l
    where l.standing = 'unknown' and l.next_at <= now_at and l.operator_id = shares.operator_id
    order by l.next_at limit shares.lanes for update skip locked) as lane
$$;
