-- KEEP KEY: let a producer's idempotency key lead to its message for so long from now on.
-- KEYS: marker   ARGV: `<stream>:<id>` of the message, milliseconds
-- Returns: 1, or 0: the key was never used, has expired, or leads to another message
local marker = redis.call('GET', KEYS[1])
if not marker or string.sub(marker, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
