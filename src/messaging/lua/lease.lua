#!lua flags=allow-oom
-- Leases the oldest messages of a queue to a response that is about to carry them.
--
-- KEYS[1] the queue: a stream whose entry ids are sequence numbers of the event log, read by the
-- consumer group `agents` ARGV[1] messages at most   ARGV[2] length of a lease, ms   ARGV[3] time
-- by the clock here after which nobody waits for the answer, ms
--
-- A server that was frozen, or behind a network that held back what was sent, runs what nobody
-- waits for any more: such a lease would keep messages out of sight for its whole length, and later
-- ones would overtake them.
--
-- First those whose lease ran out, as they are the oldest; then new ones. Returns {the time here in
-- ms, entries as XREADGROUP has them, messages that are not leased to anybody}, and the time alone
-- when it is too late.

-- Where the clock was set back, leases begun before would run out that much later: they begin anew,
-- now. What is idle for a time below 0 is reported as 0; so is the consumer, which was here last
-- before the clock was set back. Where that is not so, nothing is looked at.
local function beginAnew()
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], 'agents')) do
    if consumer[2] == 'responses' and consumer[6] > 0 then return end
  end
  local after = '-'
  repeat
    local pending = redis.call('XPENDING', KEYS[1], 'agents', after, '+', 1000)
    local claim = {'XCLAIM', KEYS[1], 'agents', 'responses', 0}
    for _, entry in ipairs(pending) do
      if entry[3] == 0 then claim[#claim + 1] = entry[1] end
      after = '(' .. entry[1]
    end
    if #claim > 5 then
      for _, option in ipairs({'IDLE', 0, 'JUSTID'}) do claim[#claim + 1] = option end
      redis.call(unpack(claim))
    end
  until #pending < 1000
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[3]) then return {now} end
if redis.call('EXISTS', KEYS[1]) == 0 then return {now, {}, 0} end
local limit = tonumber(ARGV[1])
local entries = {}
local leased = redis.call('XPENDING', KEYS[1], 'agents')[1]
if leased > 0 then
  beginAnew()
  entries = redis.call('XAUTOCLAIM', KEYS[1], 'agents', 'responses', ARGV[2], '0-0', 'COUNT', limit)[2]
end
if #entries < limit then
  local read = redis.call('XREADGROUP', 'GROUP', 'agents', 'responses', 'COUNT', limit - #entries, 'STREAMS', KEYS[1], '>')
  if read then
    for _, entry in ipairs(read[1][2]) do entries[#entries + 1] = entry end
  end
end
-- Leased to nobody: what is new, and what was released or whose lease ran out; of those, more than
-- 1,000 are not counted.
leased = redis.call('XPENDING', KEYS[1], 'agents')[1]
local released = leased > 0 and #redis.call('XPENDING', KEYS[1], 'agents', 'IDLE', ARGV[2], '-', '+', 1000) or 0
return {now, entries, math.max(0, redis.call('XLEN', KEYS[1]) - leased + released)}
