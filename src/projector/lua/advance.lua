#!lua flags=allow-oom
-- Moves the position of the queues, if nobody else has, and prolongs the lease.
--
-- Two writes are one transaction in the append-only file of Redis, like those to the queues. A
-- Redis that cannot read transactions back, as it was known to happen, so loses the position with
-- the queues, and not the queues alone.
--
-- KEYS[1] lease   KEYS[2] queues   ARGV[1] holder   ARGV[2] generation   ARGV[3] incarnation
-- ARGV[4] position it must have; empty: makes the generation current, which is whole now   ARGV[5]
-- its new position ARGV[6] length of the lease, ms
--
-- Returns 1, or 0 if the lease is another's, the position is not ARGV[4], or the generation is not
-- the one that is being built: then its queues may have been removed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[4] == '' then
  if redis.call('HGET', KEYS[2], 'building') ~= ARGV[2] then return 0 end
  redis.call('HDEL', KEYS[2], 'building')
else
  local present = redis.call('HMGET', KEYS[2], 'generation', 'position')
  if present[1] ~= ARGV[2] or present[2] ~= ARGV[4] then return 0 end
end
redis.call('HSET', KEYS[2], 'generation', ARGV[2], 'incarnation', ARGV[3], 'position', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 1
