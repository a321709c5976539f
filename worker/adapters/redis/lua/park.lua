-- PARK: the message may not go now. It waits in Redis: for its time, then for its turn.
-- KEYS: request stream, ledger, 6 sets of the stream's waiting messages, 5 sets of slots
-- ARGV: group, owner, fence, entry ID, not before (0: now), deadline (0: none)
-- Returns: {'ok'} | {'cancelled'} | {'fenced', ...} | {'state', state}
local group, owner, fence, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'state', 'cancel', 'job', 'tenant', 'namespace', 'slots')
local state, parked = known[3], integer(tonumber(fence) + 1)
if state == 'waiting' and known[1] == WAITING and known[2] == parked then return {'ok'} end
if known[1] ~= owner or known[2] ~= fence or state == 'settled' then
  return {'fenced', known[1] or '', known[2] or '', state or ''}
end
if state ~= 'received' then return {'state', state} end
if known[4] then return {'cancelled'} end

-- A script is not rolled back: that the group is gone must show before the first write.
holder(KEYS[1], group, id)
redis.call('HSET', KEYS[2], 'state', 'waiting', 'owner', WAITING, 'fence', parked, 'until', ARGV[5],
  'deadline', ARGV[6])
free_slots(known[8], 9, KEYS[2])
redis.call('HDEL', KEYS[2], 'picked', 'slots')
index(indices(3), id, known[6], known[5], known[7], tonumber(ARGV[5]), tonumber(ARGV[6]), now_ms())
-- Claiming a deleted entry would drop it from the pending list, the truth about what waits.
if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
  redis.call('XCLAIM', KEYS[1], group, WAITING, 0, id, 'JUSTID')
end
return {'ok'}
