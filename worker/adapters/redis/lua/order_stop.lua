-- The worker is about to stop the job itself; the first reason given counts.
-- KEYS: ledger   ARGV: owner, fence, verdict
-- Returns: {'ok', verdict that counts} | {'fenced', ...}
local stopping = redis.call('HGET', KEYS[1], 'stopping') or ARGV[3]
-- Written on a repeat too: WAIT tells of nothing but this connection's own last write.
redis.call('HSET', KEYS[1], 'stopping', stopping)
return {'ok', stopping}
