#!lua flags=allow-oom
-- Ends a lease before its time: its messages are back where they were, and the next one to ask
-- claims them.
--
-- KEYS[1] the queue   ARGV[1] when the lease ends by itself, by the clock here, ms   ARGV[2] length
-- of a lease, ms   ARGV[3…] entry ids
--
-- Nothing is done after that time: the messages may be in other hands. Under a name of its own, as
-- lease.lua looks at when `responses` was here last.
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[1]) then return end
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local claim = {'XCLAIM', KEYS[1], 'agents', 'released', 0}
for index = 3, #ARGV do claim[#claim + 1] = ARGV[index] end
for _, option in ipairs({'IDLE', ARGV[2], 'JUSTID'}) do claim[#claim + 1] = option end
redis.call(unpack(claim))
