-- PROGRESS: publish a step of the running job.
-- KEYS: ledger, reply stream
-- ARGV: owner, fence, seq, step, placed_at (0: unknown), reply maxlen, reply fields (packed)
-- Returns: {'ok'} | {'same'} | {'fenced', ...}
if seq >= tonumber(ARGV[3]) then return {'same'} end
append(KEYS[2], ARGV[6], with_seq(cmsgpack.unpack(ARGV[7]), tonumber(ARGV[3])))
redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'shown', ARGV[4])
if ARGV[5] ~= '0' then redis.call('HSETNX', KEYS[1], 'placed_at', ARGV[5]) end
return {'ok'}
