#!lua flags=allow-oom
-- Says which generation of queues is being built, before the first of them is written: whoever
-- removes old ones leaves these alone.
--
-- KEYS[1] lease   KEYS[2] queues (hash: building)   ARGV[1] holder   ARGV[2] generation   ARGV[3]
-- length of the lease, ms
--
-- Returns 1, or 0 if the lease is another's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], 'building', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
