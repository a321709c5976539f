-- Adds a request to its stream unless its idempotency key was used before.
-- KEYS: request stream, marker, reply stream
-- ARGV: marker retention milliseconds, stream's short name, nonce of this call, fields and values
-- Returns: {marker, last reply ID before the request} or, on a repeat, {marker}
-- The marker is `<stream>:<id>:<nonce>`. Only commands of Redis 6.2; the first write is XADD, which
-- maxmemory refuses before anything has changed.
local first = redis.call('GET', KEYS[2])
if first then return {first} end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
local marker = ARGV[2] .. ':' .. id .. ':' .. ARGV[3]
redis.call('SET', KEYS[2], marker, 'PX', ARGV[1])
return {marker, last[1] and last[1][1] or '0-0'}
