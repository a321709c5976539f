-- DISPATCHED: the dispatched job's ID is a fact, whoever brings it; only the owner goes on from it.
-- KEYS: ledger, reply stream
-- ARGV: owner, fence, attempt, dispatched job, evaluation, time, reply maxlen, reply fields (packed)
-- Returns: {'ok', seq} | {'conflict', kept job} | {'fenced', ...}
local known = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'state', 'attempt', 'seq', 'child', 'runs')
local state, child = known[3], known[6]
if known[7] and tonumber(ARGV[3]) < tonumber(known[4]) or state == 'received' and known[7] then
  -- A run that was repeated since: this is its job, or one that came too late and is one too many.
  if string.find(known[7], '"' .. ARGV[4] .. '"', 1, true) then
    return {'fenced', known[1] or '', known[2] or '', state}
  end
  return {'conflict', ''}
end
if not state or (state ~= 'settled' and known[4] ~= ARGV[3]) then
  return {'fenced', known[1] or '', known[2] or '', state or ''}
end
if child and child ~= ARGV[4] then return {'conflict', child} end
if state == 'settled' then
  -- Settled with this very job, or without any: then this one is one too many.
  if child then return {'fenced', '', '', state} end
  return {'conflict', ''}
end
local seq = tonumber(known[5] or '0')
if not child then
  seq = seq + 1
  append(KEYS[2], ARGV[7], with_seq(cmsgpack.unpack(ARGV[8]), seq))
  redis.call('HSET', KEYS[1], 'child', ARGV[4], 'eval_id', ARGV[5], 'dispatched_at', ARGV[6],
    'state', 'running', 'takeovers', 0, 'seq', integer(seq))
  redis.call('HDEL', KEYS[1], 'quarantine_until')
end
if known[1] ~= ARGV[1] or known[2] ~= ARGV[2] then
  return {'fenced', known[1], known[2], 'running'}
end
return {'ok', integer(seq)}
