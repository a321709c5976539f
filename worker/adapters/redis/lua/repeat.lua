-- REPEAT: the run ended for good and another one is to follow; what is known of its job becomes history.
-- KEYS: ledger, reply stream
-- ARGV: owner, fence, attempt that ended, runs that ended (JSON), retry_at, reply maxlen, reply fields (packed)
-- Returns: {'ok', seq, retry_at} | {'cancelled'} | {'fenced', ...} | {'state', state}
if state == 'received' and attempt == ARGV[3] and redis.call('HGET', KEYS[1], 'runs') then
  -- The answer of an earlier call was lost: what it stored counts, its time included.
  return {'ok', integer(seq), redis.call('HGET', KEYS[1], 'retry_at')}
end
if state ~= 'running' or attempt ~= ARGV[3] then return {'state', state} end
-- Ordered while the run was ending: then it was the last one.
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then return {'cancelled'} end
append(KEYS[2], ARGV[6], with_seq(cmsgpack.unpack(ARGV[7]), seq + 1))
redis.call('HSET', KEYS[1], 'state', 'received', 'runs', ARGV[4], 'retry_at', ARGV[5], 'takeovers', 0,
  'seq', integer(seq + 1))
redis.call('HDEL', KEYS[1], 'child', 'eval_id', 'intended_at', 'dispatched_at', 'placed_at', 'shown', 'stopping',
  'quarantine_until', 'picked')
return {'ok', integer(seq + 1), ARGV[5]}
