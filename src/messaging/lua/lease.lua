#!lua flags=allow-oom
-- Leases the oldest messages of a queue to a response that is about to carry them.
--
-- KEYS[1] the queue: a stream whose entry ids are places in the event log, read by the consumer group `agents`
-- ARGV[1] messages at most   ARGV[2] length of a lease, ms   ARGV[3] time by the clock here after which nobody waits for the answer, ms
--
-- A server that was frozen, or behind a network that held back what was sent, runs what nobody waits for any more: such a lease would keep
-- messages out of sight for its whole length, and later ones would overtake them.
--
-- First those whose lease ran out, as they are the oldest; then new ones.
-- Returns {the time here in ms, entries as XREADGROUP has them, messages that are not leased to anybody}, and the time alone when it is too late.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[3]) then return {now} end
if redis.call('EXISTS', KEYS[1]) == 0 then return {now, {}, 0} end
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
return {now, entries, math.max(0, redis.call('XLEN', KEYS[1]) - leased + released)}
