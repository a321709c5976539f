-- MEND: put into the index what waits by the ledger and the pending list, and take up what nobody holds.
-- KEYS: request stream, workers, 6 sets of the stream's waiting messages, one ledger per entry ID
-- ARGV: group, mender, ledger version, entry IDs
-- Returns: {put back, {entry ID[, ledger]}...}; the messages listed are the mender's, without a ledger: as
-- pending entries
local group, mender, version = ARGV[1], ARGV[2], ARGV[3]
local at, now, answer = indices(3), now_ms(), {0}
for i = 4, #ARGV do
  local id, ledger = ARGV[i], KEYS[i + 5]
  local known = redis.call('HMGET', ledger, 'v', 'state', 'owner', 'until', 'deadline', 'job', 'tenant',
    'namespace', 'cancel', 'fence')
  local state, owner = known[2], known[3]
  if holder(KEYS[1], group, id) ~= WAITING then
    -- Picked, or settled, since it was listed.
  elseif state == 'settled' then
    redis.call('XACK', KEYS[1], group, id)
  elseif state and known[1] ~= version then
    -- Written by a newer worker: left for one.
  elseif state == 'waiting' then
    if not redis.call('ZSCORE', at.delayed, id) and not redis.call('ZSCORE', at.queue, id) then
      local deadline = known[9] and 1 or number(known[5])
      index(at, id, known[7], known[6], known[8], number(known[4]), deadline, now)
      answer[1] = answer[1] + 1
    end
  elseif not owner or owner == mender or lease_over(KEYS[2], owner) then
    -- Its ledger is lost, or it was picked after its entry was deleted and its picker died.
    if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
      redis.call('XCLAIM', KEYS[1], group, mender, 0, id, 'JUSTID')
      answer[#answer + 1] = {id}
    else
      if not state then
        redis.call('HSET', ledger, 'v', version, 'state', 'received', 'fence', 0, 'seq', 0, 'received_at',
          integer(now))
      end
      -- Its own: picked, and the answer was lost. What it has in hand it knows by the fence.
      if owner ~= mender then
        redis.call('HSET', ledger, 'owner', mender)
        redis.call('HINCRBY', ledger, 'fence', 1)
      end
      answer[#answer + 1] = {id, redis.call('HGETALL', ledger)}
    end
  end
end
return answer
