#!lua
-- Adds messages to some queues.
--
-- KEYS[1] the position of the queues (hash: generation), unless ARGV[2] is empty   KEYS[2…] the
-- queues ARGV[1] longest that one may be ARGV[2] the generation that the position must have. Empty:
-- nothing is asked, and KEYS[1] is a queue ARGV[3…] for each queue: how many messages are added; of
-- each its entry id and its payload, in the order of the log
--
-- A message that is there already, or was before, is passed over. A server that is full refuses the
-- whole script (OOM), and nothing is done. Returns the number of messages dropped because their
-- queue was full, the oldest first; an error, and nothing is done, where the generation is another.
-- Queues that were lost must not come back with what is new alone: agents are served from them
-- until their loss is noticed.
local first = 1
if ARGV[2] ~= '' then
  if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[2] then return redis.error_reply('LOST the queues are gone, or of another generation') end
  first = 2
end
local longest = tonumber(ARGV[1])
local dropped = 0
local at = 3
for key = first, #KEYS do
  local queue = KEYS[key]
  local added = tonumber(ARGV[at])
  at = at + 1
  local length = redis.call('XLEN', queue)
  if length == 0 then
    if redis.call('EXISTS', queue) == 0 then
      redis.call('XGROUP', 'CREATE', queue, 'agents', '0', 'MKSTREAM')
    else
      redis.call('PERSIST', queue)
    end
  end
  for index = at, at + 2 * added - 1, 2 do
    -- Refused where the id is not above the last one: that is how a message is added once.
    local entry = redis.pcall('XADD', queue, ARGV[index], 'm', ARGV[index + 1])
    if type(entry) == 'table' and entry.err and not string.find(entry.err, 'equal or smaller', 1, true) then return entry end
  end
  at = at + 2 * added
  if length + added > longest then dropped = dropped + redis.call('XTRIM', queue, 'MAXLEN', longest) end
end
return dropped
