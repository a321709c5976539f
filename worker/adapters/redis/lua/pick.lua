-- PICK: give waiting messages to a worker that has room, in fair order, within the caps and rates.
-- First those whose deadline has passed (they are to be answered, not dispatched: without slots, and not
-- marked as picked, so that whoever finds that there is time left lets them wait again); then,
-- tenant by tenant in the order of their virtual times, the oldest message that may go. A flow (one tenant's
-- messages for one job and namespace) whose limit is reached is passed over, and holds nobody up.
-- KEYS: request stream, 6 sets of the stream's waiting messages, 5 sets of slots, rates, prefix of ledgers
-- ARGV: group, picker, ledger version, stream, most messages that may go, time (0: Redis's), tenants to pass over,
--       flow of the next one to begin after, limits as MessagePack, 1: tell ages
-- Ledgers are found by their prefix: which messages it will be is not known before. All keys are in one slot.
-- Returns: {next time to look (0: none), messages queued, delayed, since when the oldest one that may go waits
--   (0: none may, or ages are not to be told), tenants to pass over next time, flow to begin after, {entry ID, ledger[, fields of the entry]}...}
local DUE_AT_ONCE, OVERDUE_AT_ONCE, LOOKS = 200, 50, 400
local at = indices(2)
-- Nearly every look is at nothing: what waits is delayed, or its tenant has a turn.
if redis.call('ZCARD', at.turns) == 0 and redis.call('ZCARD', at.delayed) == 0 then
  return {'0', 0, 0, '0', 0, ''}
end
local group, picker, version, stream, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local now = tonumber(ARGV[6])
if now == 0 then now = now_ms() end
local limits = cmsgpack.unpack(ARGV[9])
local CAPS, RATES = 8, KEYS[13]
local out, next_look = {}, nil
-- A script is not rolled back: that the group is gone must show before the first write.
holder(KEYS[1], group, '0-1')

local function look_again(time)
  if not next_look or time < next_look then next_look = time end
end

local function ledger_of(id) return KEYS[14] .. id end

local function forget(id, member)
  redis.call('ZREM', at.queue, id)
  redis.call('ZREM', at.flows, member)
  redis.call('ZREM', at.delayed, id)
  redis.call('ZREM', at.deadlines, id)
end

-- Give a message out. Returns whether it waited.
local function hand(id, member, slots)
  local ledger = ledger_of(id)
  local known = redis.call('HMGET', ledger, 'v', 'state', 'fence')
  if known[2] ~= 'waiting' or known[1] ~= version then
    -- Taken up again in another way, and its entry in the index was left behind. (Or a newer worker's: it
    -- indexes it again.)
    forget(id, member)
    return false
  end
  redis.call('HSET', ledger, 'state', 'received', 'owner', picker, 'fence', integer(tonumber(known[3]) + 1))
  if slots then
    redis.call('HSET', ledger, 'picked', integer(now), 'slots', slots)
    take_slots(slots, CAPS, ledger)
  end
  forget(id, member)
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    redis.call('XCLAIM', KEYS[1], group, picker, 0, id, 'JUSTID')
    out[#out + 1] = {id, redis.call('HGETALL', ledger), entry[2]}
  else
    out[#out + 1] = {id, redis.call('HGETALL', ledger)}
  end
  return true
end

-- Patterns count in bytes, names are UTF-8: what stands for a character (see core/queueing.py).
local function whole_characters(pattern)
  pattern = string.gsub(pattern, '\1', '[\1-\127\194-\244][\128-\191]*')
  pattern = string.gsub(pattern, '\2', '\194-\244')
  return (string.gsub(pattern, '\3', '[\128-\191]*'))
end

-- Limits. The table for a name is its own, else that of the most specific glob that matches.
local found, counts, credits = {}, {}, {}

local function limit_of(scope, name)
  local key = scope .. '\t' .. name
  if found[key] == nil then
    local tables, limit = limits[scope], false
    if tables then
      local own = tables.names[name]
      if own then
        limit = {name = name, limit = own}
      else
        for _, one in ipairs(tables.globs) do
          if string.find(name, whole_characters(one.pattern)) then
            limit = {name = one.limit.shared and one.glob or name, limit = one.limit}
            break
          end
        end
      end
    end
    found[key] = limit
  end
  return found[key] or nil
end

local function taken(scope, name)
  local key = scope .. '\t' .. name
  if not counts[key] then
    counts[key] = redis.call('ZLEXCOUNT', KEYS[CAPS + SCOPES[scope]], '[' .. name .. '\t', '(' .. name .. '\n')
  end
  return counts[key]
end

-- When a rate's credit is whole again: the theoretical arrival time of a token bucket kept as one number.
local function whole_at(key, interval, burst)
  if not credits[key] then
    local stored = number(redis.call('ZSCORE', RATES, key))
    credits[key] = math.min(math.max(stored, now), now + interval * burst)
  end
  return credits[key]
end

-- Whether one more may go by this scope's limit.
local function allows(scope, name)
  local one = limit_of(scope, name)
  if not one then return true end
  if one.limit.cap and taken(scope, one.name) >= one.limit.cap then return false end
  if one.limit.per_second then
    local interval = 1000 / one.limit.per_second
    local free_at = whole_at(scope .. '\t' .. one.name, interval, one.limit.burst)
      - interval * (one.limit.burst - 1)
    if free_at > now then
      look_again(math.ceil(free_at))
      return false
    end
  end
  return true
end

-- One more goes: count it, and say which slots it takes.
local function charge(names)
  local slots = {}
  for _, pair in ipairs(names) do
    local scope, one = pair[1], limit_of(pair[1], pair[2])
    if one then
      local key = scope .. '\t' .. one.name
      if one.limit.cap then
        counts[key] = taken(scope, one.name) + 1
        slots[#slots + 1] = key
      end
      if one.limit.per_second then
        local interval = 1000 / one.limit.per_second
        credits[key] = whole_at(key, interval, one.limit.burst) + interval
        redis.call('ZADD', RATES, text_of(credits[key]), key)
      end
    end
  end
  return table.concat(slots, '\n')
end

-- Deadlines ----------------------------------------------------------------------------------------
for _, id in ipairs(redis.call('ZRANGEBYSCORE', at.deadlines, '-inf', integer(now), 'LIMIT', 0, OVERDUE_AT_ONCE)) do
  local known = redis.call('HMGET', ledger_of(id), 'tenant', 'job', 'namespace')
  hand(id, flow_of(known[1], known[2], known[3]) .. sortable(id), nil)
end

-- What has become due ------------------------------------------------------------------------------
local due = redis.call('ZRANGEBYSCORE', at.delayed, '-inf', integer(now), 'WITHSCORES', 'LIMIT', 0, DUE_AT_ONCE)
for i = 1, #due, 2 do
  local known = redis.call('HMGET', ledger_of(due[i]), 'tenant', 'job', 'namespace', 'state')
  if known[4] == 'waiting' then enqueue(at, due[i], known[1], known[2], known[3], tonumber(due[i + 1])) end
  redis.call('ZREM', at.delayed, due[i])
end
if #due == 2 * DUE_AT_ONCE then look_again(now) end

-- Turns --------------------------------------------------------------------------------------------
local virtual = number(redis.call('ZSCORE', at.served, NOW))
local rank, begin_after = tonumber(ARGV[7]), ARGV[8]
local looks, flows_of = 0, {}

local function first_after(tenant, min)
  looks = looks + 1
  local member = redis.call('ZRANGEBYLEX', at.flows, min, '(' .. tenant .. '\n', 'LIMIT', 0, 1)[1]
  if not member then return nil end
  local job, namespace, sorted = string.match(member, '^[^\t]*\t([^\t]*)\t([^\t]*)\t(.+)$')
  return {member = member, prefix = flow_of(tenant, job, namespace), job = job, namespace = namespace,
    sorted = sorted}
end

-- The heads of a tenant's flows, in the index's order; bounded by what may be looked at in one call.
local function heads_of(tenant)
  if not flows_of[tenant] then
    local mine = '[' .. tenant .. '\t'
    local resumed = string.sub(begin_after, 2, #mine) == string.sub(mine, 2)
    local heads, whole = {}, true
    local head = first_after(tenant, resumed and begin_after or mine)
    while head do
      heads[#heads + 1] = head
      if looks >= LOOKS then
        whole = false
        break
      end
      head = first_after(tenant, '(' .. head.prefix .. '\127')
    end
    flows_of[tenant] = {heads = heads, whole = whole, none = #heads == 0 and not resumed}
  end
  return flows_of[tenant]
end

local function oldest(tenant, heads)
  local best
  for i, head in ipairs(heads) do
    if (not best or head.sorted < heads[best].sorted) and allows('job', head.job)
      and allows('namespace', head.namespace) then best = i end
  end
  return best
end

local function next_in(head)
  local member = redis.call('ZRANGEBYLEX', at.flows, '[' .. head.prefix, '(' .. head.prefix .. '\127', 'LIMIT', 0, 1)[1]
  if not member then return nil end
  return {member = member, prefix = head.prefix, job = head.job, namespace = head.namespace,
    sorted = string.sub(member, #head.prefix + 1)}
end

local pass_over, begin_next, given = 0, '', 0
while given < most and allows('total', '') and allows('stream', stream) do
  local turn = redis.call('ZRANGE', at.turns, rank, rank, 'WITHSCORES')
  local tenant = turn[1]
  if not tenant then break end
  if looks >= LOOKS then
    -- Whoever is further back is looked at first next time.
    pass_over = rank
    break
  end
  local may, best, flows = allows('tenant', tenant), nil, nil
  if may then
    flows = heads_of(tenant)
    best = oldest(tenant, flows.heads)
  else
    looks = looks + 1
  end
  if flows and flows.none then
    redis.call('ZREM', at.turns, tenant)
    if tonumber(turn[2]) > virtual then redis.call('ZADD', at.served, turn[2], tenant) end
  elseif not best then
    if flows and not flows.whole then
      pass_over, begin_next = rank, '(' .. flows.heads[#flows.heads].prefix .. '\127'
      break
    end
    rank = rank + 1
  else
    local head = flows.heads[best]
    local tag = math.max(tonumber(turn[2]), virtual)
    local scopes = {{'total', ''}, {'stream', stream}, {'job', head.job}, {'namespace', head.namespace},
      {'tenant', tenant}}
    -- Looked at before it is charged: what was left behind in the index costs nobody anything.
    if redis.call('HGET', ledger_of(id_of(head.sorted)), 'state') == 'waiting' then
      if hand(id_of(head.sorted), head.member, charge(scopes)) then
        virtual, given = tag, given + 1
        local own = limit_of('tenant', tenant)
        redis.call('ZADD', at.turns, text_of(tag + 1 / (own and own.limit.weight or 1)), tenant)
      end
    else
      forget(id_of(head.sorted), head.member)
    end
    local following = next_in(head)
    if following then flows.heads[best] = following else table.remove(flows.heads, best) end
    -- With its last flow empty it is looked at once more, as one without any.
    if #flows.heads == 0 then flows_of[tenant] = nil end
  end
end
if given > 0 then
  redis.call('ZADD', at.served, text_of(virtual), NOW)
  redis.call('ZREMRANGEBYSCORE', at.served, '-inf', '(' .. text_of(virtual))
  redis.call('ZREMRANGEBYSCORE', RATES, '-inf', '(' .. integer(now))
end

for _, index_ in ipairs({at.delayed, at.deadlines}) do
  local first = redis.call('ZRANGE', index_, 0, 0, 'WITHSCORES')
  if first[2] then look_again(tonumber(first[2])) end
end
if pass_over > 0 or begin_next ~= '' then look_again(now) end

-- By what waits for a slot or for credit a stream must not age: others would go in its name.
local function since_when()
  local best
  looks = 0
  if not (allows('total', '') and allows('stream', stream)) then return '0' end
  for _, tenant in ipairs(redis.call('ZRANGE', at.turns, 0, LOOKS)) do
    -- Too many to look at them all: then as if everything might go.
    if looks >= LOOKS then return redis.call('ZRANGE', at.queue, 0, 0, 'WITHSCORES')[2] or '0' end
    if allows('tenant', tenant) then
      for _, head in ipairs(heads_of(tenant).heads) do
        if allows('job', head.job) and allows('namespace', head.namespace) then
          local since = number(redis.call('ZSCORE', at.queue, id_of(head.sorted)))
          if since > 0 and (not best or since < best) then best = since end
        end
      end
    else
      looks = looks + 1
    end
  end
  return best and integer(best) or '0'
end

local since = ARGV[10] == '1' and since_when() or '0'
return {integer(next_look or 0), redis.call('ZCARD', at.queue), redis.call('ZCARD', at.delayed), since,
  pass_over, begin_next, unpack(out)}
