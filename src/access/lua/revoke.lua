#!lua flags=allow-oom
-- Ends a session, and marks its token, so that a verification under way does not open it again.
--
-- KEYS[1] session   KEYS[2] mark of a revocation   ARGV[1] how long the mark stays, ms
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
