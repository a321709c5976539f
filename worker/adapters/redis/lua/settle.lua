-- FINALIZE: the only place where a final reply appears; with it the dead letter and the acknowledgement.
-- KEYS: request stream, ledger, reply stream, dead-letter stream, cancels, 5 sets of slots
-- ARGV: group, entry ID, owner, fence, seq in memory, reply maxlen, retention milliseconds,
--       ledger fields, dead-letter fields (none: no dead letter), reply fields (all packed)
-- Returns: {'ok', reply ID, seq} | {'settled', reply ID, seq} | {'fenced', ...}
local group, id = ARGV[1], ARGV[2]
local known = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'state', 'seq', 'reply_id', 'slots')
if known[3] == 'settled' then
  redis.call('XACK', KEYS[1], group, id)
  return {'settled', known[5] or '', known[4] or '0'}
end
-- No ledger at all: Redis lost its data. What this worker saw is all there is, so it is told.
if known[3] and (known[1] ~= ARGV[3] or known[2] ~= ARGV[4]) then
  return {'fenced', known[1] or '', known[2] or '', known[3]}
end
local seq = tonumber(known[4] or ARGV[5]) + 1

local ledger, dead, reply = cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[9]), cmsgpack.unpack(ARGV[10])

local original = {}
if #dead > 0 then
  -- A script is not rolled back: that this key cannot take a dead letter must show before the first write.
  redis.call('XLEN', KEYS[4])
  local found = redis.call('XRANGE', KEYS[1], id, id)
  original = found[1] and found[1][2] or {}
end

local reply_id = append(KEYS[3], ARGV[6], with_seq(reply, seq))
if #dead > 0 then
  -- unpack is limited by Lua's stack: an entry of thousands of fields is kept as one value.
  if #original > 2000 then
    original = {'dead_fields_msgpack', cmsgpack.pack(original)}
  end
  for i = 1, #original do dead[#dead + 1] = original[i] end
  redis.call('XADD', KEYS[4], '*', unpack(dead))
end
redis.call('HSET', KEYS[2], 'state', 'settled', 'reply_id', reply_id, 'seq', integer(seq),
  'finished_at', integer(now_ms()), unpack(ledger))
redis.call('HDEL', KEYS[2], 'owner', 'fence', 'shown', 'stopping', 'cancel', 'quarantine_until',
  'placed_at', 'retry_at', 'slots', 'picked', 'until', 'deadline')
free_slots(known[6], 6, KEYS[2])
redis.call('ZREM', KEYS[5], KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
redis.call('XACK', KEYS[1], group, id)
return {'ok', reply_id, integer(seq)}
