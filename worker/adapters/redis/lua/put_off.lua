-- UNDISPATCH: Nomad certainly created nothing; the message may be dispatched by anyone, any time.
-- KEYS: ledger   ARGV: owner, fence, attempt to go back to
-- Returns: {'ok'} | {'fenced', ...} | {'state', state}
if state == 'received' then return {'ok'} end
if state ~= 'dispatching' then return {'state', state} end
redis.call('HSET', KEYS[1], 'state', 'received', 'attempt', ARGV[3])
redis.call('HDEL', KEYS[1], 'quarantine_until', 'intended_at')
return {'ok'}
