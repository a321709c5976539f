-- What is kept of waiting messages. The ledger and the group's pending list are the truth: an entry that
-- waits is pending for the consumer WAITING, which no worker can be called. The sorted sets are indices.
local WAITING = '~waiting'
local NOW = '\tnow'

-- The sets of one stream, from the number of the first one's key.
local function indices(first)
  return {delayed = KEYS[first], queue = KEYS[first + 1], flows = KEYS[first + 2], turns = KEYS[first + 3],
    served = KEYS[first + 4], deadlines = KEYS[first + 5]}
end

-- An ID as text that sorts like its two numbers: each begins with a letter for how many digits follow.
local function sortable(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.char(64 + #ms) .. ms .. '-' .. string.char(64 + #seq) .. seq
end

local function id_of(sorted)
  local ms, seq = string.match(sorted, '^.(%d+)-.(%d+)$')
  return ms .. '-' .. seq
end

local function flow_of(tenant, job, namespace)
  return (tenant or '') .. '\t' .. (job or '') .. '\t' .. (namespace or '') .. '\t'
end

local function number(text)
  return tonumber(text or '0') or 0
end

local function text_of(number_)
  return string.format('%.17g', number_)
end

-- The message waits for its turn, since a time. A tenant that comes (back) starts where the others are, so
-- that having been away is no credit; and where it was itself, if that is further.
local function enqueue(at, id, tenant, job, namespace, since)
  tenant = tenant or ''
  redis.call('ZADD', at.queue, integer(since), id)
  redis.call('ZADD', at.flows, 0, flow_of(tenant, job, namespace) .. sortable(id))
  if not redis.call('ZSCORE', at.turns, tenant) then
    local now = number(redis.call('ZSCORE', at.served, NOW))
    local own = number(redis.call('ZSCORE', at.served, tenant))
    redis.call('ZADD', at.turns, text_of(math.max(now, own)), tenant)
    redis.call('ZREM', at.served, tenant)
  end
end

-- Put a message whose ledger says that it waits where it belongs.
local function index(at, id, tenant, job, namespace, until_ms, deadline_ms, now)
  if until_ms > now then
    redis.call('ZADD', at.delayed, integer(until_ms), id)
  else
    local came = number(string.match(id, '^%d+'))
    -- An ID of the producer's own making tells no time.
    if came < 1000000000000 or came > now then came = now end
    enqueue(at, id, tenant, job, namespace, math.max(until_ms, came))
  end
  if deadline_ms > 0 then redis.call('ZADD', at.deadlines, integer(deadline_ms), id) end
end
