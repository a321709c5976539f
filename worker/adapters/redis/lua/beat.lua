-- BEAT: renew a worker's lease on Redis's own clock.
-- KEYS: workers, worker   ARGV: name, lease milliseconds, fields for people (packed)
-- Returns: now, Unix milliseconds
local now = now_ms()
local seen = redis.call('HGET', KEYS[2], 'seen_at')
-- A gap in this server's own memory: it was away, or it is a replica just promoted, which missed some beats.
local gap = not seen or now - tonumber(seen) > tonumber(ARGV[2]) / 2
redis.call('ZADD', KEYS[1], integer(now + tonumber(ARGV[2])), ARGV[1])
redis.call('HSET', KEYS[2], 'seen_at', integer(now), unpack(cmsgpack.unpack(ARGV[3])))
if gap then redis.call('HSET', KEYS[2], 'steady_since', integer(now)) end
redis.call('PEXPIRE', KEYS[2], 60000)
return integer(now)
