-- Leases the oldest messages of a queue to a response that is about to carry them.
--
-- KEYS[1] the queue: a stream whose entry ids are places in the event log, read by the consumer group `agents`
-- ARGV[1] messages at most   ARGV[2] length of a lease, ms
--
-- First those whose lease ran out, as they are the oldest; then new ones.
-- Returns {entries as XREADGROUP has them, messages that are not leased to anybody}
if redis.call('EXISTS', KEYS[1]) == 0 then return {{}, 0} end
local limit = tonumber(ARGV[1])
local entries = {}
local leased = redis.call('XPENDING', KEYS[1], 'agents')[1]
if leased > 0 then
  entries = redis.call('XAUTOCLAIM', KEYS[1], 'agents', 'responses', ARGV[2], '0-0', 'COUNT', limit)[2]
end
if #entries < limit then
  local read = redis.call('XREADGROUP', 'GROUP', 'agents', 'responses', 'COUNT', limit - #entries, 'STREAMS', KEYS[1], '>')
  if read then
    for _, entry in ipairs(read[1][2]) do entries[#entries + 1] = entry end
  end
end
-- Leased to nobody: what is new, and what was released or whose lease ran out; of those, more than 1,000 are not counted.
leased = redis.call('XPENDING', KEYS[1], 'agents')[1]
local released = leased > 0 and #redis.call('XPENDING', KEYS[1], 'agents', 'IDLE', ARGV[2], '-', '+', 1000) or 0
return {entries, math.max(0, redis.call('XLEN', KEYS[1]) - leased + released)}
