#!lua flags=allow-oom
-- Takes or prolongs the lease of the projector of the queues.
--
-- KEYS[1] lease (string: the holder)   KEYS[2] queues (hash: generation, incarnation, position,
-- building) ARGV[1] holder   ARGV[2] length of the lease, ms
--
-- Returns nil if another process holds the lease, else {generation, incarnation, position,
-- building}, with false for what is not there.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  -- Keys go out by a time of the clock. Where that was set back, the lease is as long from now as
  -- it was, and no longer.
  if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return nil
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('HMGET', KEYS[2], 'generation', 'incarnation', 'position', 'building')
