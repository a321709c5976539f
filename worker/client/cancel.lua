-- Orders that a message not be dispatched or, when it is, that its job be stopped.
-- KEYS: request stream, ledger, cancels, control, floor, deadlines
-- ARGV: entry ID, milliseconds after which an order whose message nobody ever settled is dropped
-- Returns: {'prevented'} | {'ordered', state} | {'settled', verdict} | {'unknown'}
-- Only commands of Redis 6.2. Once 'prevented' is returned no worker dispatches the message: INTENT refuses.
local function done(id, floor)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local floor_ms, floor_seq = string.match(floor or '', '^(%d+)-(%d+)$')
  if not ms or not floor_ms then return false end
  ms, seq, floor_ms, floor_seq = tonumber(ms), tonumber(seq), tonumber(floor_ms), tonumber(floor_seq)
  return ms < floor_ms or (ms == floor_ms and seq <= floor_seq)
end

local known = redis.call('HMGET', KEYS[2], 'state', 'verdict')
local state = known[1]
if state == 'settled' then return {'settled', known[2] or ''} end
if not state then
  -- Read and settled so long ago that the ledger has forgotten it, or never sent.
  if done(ARGV[1], redis.call('GET', KEYS[5])) then return {'unknown'} end
  if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return {'unknown'} end
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', now), KEYS[2])
if state then redis.call('HSETNX', KEYS[2], 'cancel', string.format('%.0f', now)) end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'cancel', KEYS[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - tonumber(ARGV[2])))
-- In nobody's hands: as one whose deadline has passed it is taken up and answered at once.
if state == 'waiting' then redis.call('ZADD', KEYS[6], 1, ARGV[1]) end
if not state or state == 'received' or state == 'waiting' then return {'prevented'} end
return {'ordered', state}
