-- TAKE: become the owner of messages of a worker whose lease is over.
-- KEYS: request stream, workers, dead worker, taker, one ledger per entry ID
-- ARGV: group, taker's name, dead worker's name, ledger version, lease milliseconds, entry IDs
-- Returns: {'alive'} | {'unsteady'} | {'ok', {entry ID, ledger...}...}
local group, taker, dead, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not lease_over(KEYS[2], dead) then return {'alive'} end
local died = redis.call('HGET', KEYS[3], 'released') and 0 or 1
if died == 1 then
  -- After an outage or a failover every lease looks over here. Who has not kept one on this very server for a
  -- whole lease cannot know that the others do not come back too.
  local since = redis.call('HGET', KEYS[4], 'steady_since')
  if lease_over(KEYS[2], taker) or not since or now_ms() - tonumber(since) < tonumber(ARGV[5]) then
    return {'unsteady'}
  end
end

local taken = {'ok'}
for i = 6, #ARGV do
  local id, ledger = ARGV[i], KEYS[i - 1]
  local known = redis.call('HMGET', ledger, 'v', 'state', 'owner')
  local state, owner = known[2], known[3]
  if holder(KEYS[1], group, id) ~= dead then
    -- Another replica was faster.
  elseif state == 'settled' then
    redis.call('XACK', KEYS[1], group, id)
  elseif state and known[1] ~= version then
    -- Written by a newer worker: left for one.
  elseif owner == taker then
    -- Taken before, and the answer was lost, or it was let go of by mistake: its entry was deleted, see below.
    taken[#taken + 1] = {id, redis.call('HGETALL', ledger)}
  elseif owner and owner ~= dead and not lease_over(KEYS[2], owner) then
    -- The entry was deleted and its message taken before (see below), or a group was recreated.
  else
    if not state then
      redis.call('HSET', ledger, 'v', version, 'state', 'received', 'fence', 0, 'seq', 0,
        'received_at', integer(now_ms()))
    end
    redis.call('HSET', ledger, 'owner', taker)
    -- It waited, and a recreated group had delivered it again to the dead worker.
    if state == 'waiting' then redis.call('HSET', ledger, 'state', 'received') end
    redis.call('HINCRBY', ledger, 'fence', 1)
    redis.call('HINCRBY', ledger, 'takeovers', died)
    -- Claiming a deleted entry would drop it from the pending list, and with it the only way to find
    -- the message again: it stays pending for the dead consumer until it is settled.
    if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
      redis.call('XCLAIM', KEYS[1], group, taker, 0, id, 'JUSTID')
    end
    taken[#taken + 1] = {id, redis.call('HGETALL', ledger)}
  end
end
return taken
