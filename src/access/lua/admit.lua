#!lua flags=allow-oom
-- Finds the session of a token, or opens one, and takes a request from a bucket.
--
-- KEYS[1] session (hash: digest, identity)   KEYS[2] mark of a revocation   KEYS[3] bucket (string:
-- when it is full again, ms) ARGV[1] SHA-256 of the token, hex ARGV[2] identity to open a session
-- for; empty: look one up ARGV[3] time to live of a new session, ms ARGV[4] size of the bucket,
-- requests; 0: take nothing ARGV[5] time in which an empty bucket fills, ms
--
-- Returns nil if there is no session (or it may not be opened: the token has been revoked), else
-- {identity, time to live of the session in ms, and unless ARGV[4] is 0: taken (1 or 0), remaining,
-- full again at (ms), retry after (ms)}
local identity = ARGV[2]
if identity == '' then
  local session = redis.call('HMGET', KEYS[1], 'digest', 'identity')
  if session[1] ~= ARGV[1] then return nil end
  identity = session[2]
else
  if redis.call('EXISTS', KEYS[2]) == 1 then return nil end
  redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'identity', identity)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
local left = redis.call('PTTL', KEYS[1])
-- The clock was set back.
if left > tonumber(ARGV[3]) then
  left = tonumber(ARGV[3])
  redis.call('PEXPIRE', KEYS[1], left)
end
local answer = {identity, left}
local limit = tonumber(ARGV[4])
if limit == 0 then return answer end

-- The generic cell rate algorithm, as in admission.ts. Redis's clock, so that all nodes have one.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local period = tonumber(ARGV[5])
local interval = period / limit
local tolerance = 0.02
local stored = tonumber(redis.call('GET', KEYS[3]) or now)
local furthest = now + period + tolerance * interval
-- One that is further ahead than any that is ever set says that the clock was set back: the bucket
-- is empty, and no emptier.
local current = stored > furthest and now + period or math.max(stored, now)
local following = current + interval
local taken = following <= furthest
local kept = taken and following or current
-- Kept as what it is taken for also where nothing was taken, or it would be as far ahead the next
-- time, until the old time has come.
if taken or stored > furthest then
  redis.call('SET', KEYS[3], string.format('%.17g', kept), 'PX', math.max(1, math.ceil(kept - now)))
end
answer[3] = taken and 1 or 0
answer[4] = math.max(0, math.floor((now + period - kept) / interval + tolerance))
answer[5] = string.format('%.3f', kept)
answer[6] = taken and '0' or string.format('%.3f', math.min(following - now - period, interval))
return answer
