-- The worker is about to stop the job itself; the first reason given counts.
-- KEYS: ledger   ARGV: owner, fence, verdict
-- Returns: {'ok', verdict that counts} | {'fenced', ...}
redis.call('HSETNX', KEYS[1], 'stopping', ARGV[3])
return {'ok', redis.call('HGET', KEYS[1], 'stopping')}
