-- Takes delivered messages out of a queue.
--
-- KEYS[1] the queue   ARGV[1] time after which an empty queue is forgotten, ms   ARGV[2…] entry ids
--
-- Returns the number of messages that were still there.
redis.call('XACK', KEYS[1], 'agents', unpack(ARGV, 2))
local removed = redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XLEN', KEYS[1]) == 0 then
  -- Not at once: while the stream exists it remembers its last id, and refuses a message that comes a second time.
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return removed
