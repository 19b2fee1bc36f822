-- Adds messages to a queue in the order of the log; one that is there already, or was before, is passed over.
--
-- KEYS[1] the queue   ARGV[1] longest that it may be   ARGV[2…] for each message: its place in the log, then its payload
--
-- Returns the number of messages dropped because the queue was full, the oldest first.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], 'agents', '0', 'MKSTREAM')
else
  redis.call('PERSIST', KEYS[1])
end
for index = 2, #ARGV, 2 do
  -- Refused where the id is not above the last one: that is how a message is added once.
  local added = redis.pcall('XADD', KEYS[1], ARGV[index] .. '-0', 'm', ARGV[index + 1])
  if type(added) == 'table' and added.err and not string.find(added.err, 'equal or smaller', 1, true) then return added end
end
return redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1])
