-- ADOPT: make the reader of an entry its owner; a settled one is acknowledged again.
-- KEYS: request stream, ledger, reply stream, workers, cancels
-- ARGV: group, owner, entry ID, ledger version, reply maxlen, ledger fields, reply fields (both packed)
-- Returns: {'new', received_at, cancel} | {'mine', ledger...} | {'settled'} | {'elsewhere'} | {'not_pending'} | {'unreadable', version}
local group, owner, id, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if holder(KEYS[1], group, id) ~= owner then return {'not_pending'} end

local known = redis.call('HMGET', KEYS[2], 'v', 'state', 'owner', 'fence', 'token')
local state, old_owner, fence, token = known[2], known[3], known[4], known[5]
if state then
  if known[1] ~= version then return {'unreadable', known[1] or ''} end
  if state == 'settled' then
    redis.call('XACK', KEYS[1], group, id)
    return {'settled'}
  end
  if old_owner ~= owner then
    if not lease_over(KEYS[4], old_owner) then
      -- A recreated group delivers again what a live worker still holds: give it back to that one.
      redis.call('XCLAIM', KEYS[1], group, old_owner, 0, id, 'JUSTID')
      return {'elsewhere'}
    end
    redis.call('HSET', KEYS[2], 'owner', owner, 'fence', integer(tonumber(fence) + 1))
    -- A recreated group delivers again what waited: it is made to wait again.
    if state == 'waiting' then redis.call('HSET', KEYS[2], 'state', 'received') end
  end
  if token then return {'mine', redis.call('HGETALL', KEYS[2])} end
end

-- New, or taken from a worker that died before it admitted the entry.
append(KEYS[3], ARGV[5], with_seq(cmsgpack.unpack(ARGV[7]), 1))
local received_at = integer(now_ms())
redis.call('HSET', KEYS[2], 'seq', 1, unpack(cmsgpack.unpack(ARGV[6])))
if not state then
  redis.call('HSET', KEYS[2], 'v', version, 'state', 'received', 'owner', owner, 'fence', 1,
    'received_at', received_at)
end
-- Ordered before there was a ledger to mark.
local ordered = redis.call('ZSCORE', KEYS[5], KEYS[2])
if ordered then redis.call('HSET', KEYS[2], 'cancel', ordered) end
if not state then return {'new', received_at, ordered or ''} end
return {'mine', redis.call('HGETALL', KEYS[2])}
