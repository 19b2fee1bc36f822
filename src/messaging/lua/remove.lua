#!lua flags=allow-oom
-- Takes messages out of some queues.
--
-- KEYS the queues   ARGV[1] time after which an empty queue is forgotten, ms ARGV[2…] for each
-- queue: how many messages are taken out, and the entry id of each; one that is not there is passed
-- over
local at = 2
for _, queue in ipairs(KEYS) do
  local removed = tonumber(ARGV[at])
  local last = at + removed
  redis.call('XACK', queue, 'agents', unpack(ARGV, at + 1, last))
  redis.call('XDEL', queue, unpack(ARGV, at + 1, last))
  at = last + 1
  -- Not at once: while the stream exists it remembers its last id, and refuses a message that comes
  -- a second time.
  if redis.call('XLEN', queue) == 0 then redis.call('PEXPIRE', queue, ARGV[1]) end
end
