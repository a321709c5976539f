-- SWEEP: delete settled entries that TRIM cannot reach, for an older one is still pending: it waits, or its
-- job runs for days. Only where no other group reads the stream.
-- KEYS: request stream
-- ARGV: group, entry ID to begin after ('-': the first), fewest worth beginning for, most at once
-- Returns: {deleted, entry ID to go on after; empty: the end}
-- Only what lies behind the group's cursor, never the entry at the cursor or beyond: from a deleted entry
-- there on, Redis would not know the lag.
local group, after, fewest, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups ~= 1 then return {0, ''} end
local info = {}
for i = 1, #groups[1], 2 do info[groups[1][i]] = groups[1][i + 1] end
-- Redis 6.2 does not tell the lag.
local lag, cursor = tonumber(info['lag'] or nil), info['last-delivered-id']
if info['name'] ~= group or not lag then return {0, ''} end
local settled = redis.call('XLEN', KEYS[1]) - lag - tonumber(info['pending'])
if after == '-' and settled < fewest then return {0, ''} end

local deleted = 0

-- Delete what lies between two entries, neither included. Returns whether all of it was.
local function clear(from, to)
  local ids = {}
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], from, '(' .. to, 'COUNT', most - deleted)) do
    ids[#ids + 1] = entry[1]
  end
  if #ids > 0 then deleted = deleted + redis.call('XDEL', KEYS[1], unpack(ids)) end
  return deleted < most
end

local from = after == '-' and '-' or '(' .. after
local pending = redis.call('XPENDING', KEYS[1], group, from, '(' .. cursor, 200)
for _, one in ipairs(pending) do
  if not clear(from, one[1]) then return {deleted, after} end
  after = one[1]
  from = '(' .. after
end
if #pending == 200 then return {deleted, after} end
if not clear(from, cursor) then return {deleted, after} end
return {deleted, ''}
