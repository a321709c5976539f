-- BEAT: renew a worker's lease on Redis's own clock.
-- KEYS: workers, worker   ARGV: name, lease milliseconds, fields and values for people
-- Returns: now, Unix milliseconds
local now = now_ms()
redis.call('ZADD', KEYS[1], integer(now + tonumber(ARGV[2])), ARGV[1])
redis.call('HSET', KEYS[2], 'seen_at', integer(now), unpack(slice(3, #ARGV)))
redis.call('PEXPIRE', KEYS[2], 60000)
return integer(now)
