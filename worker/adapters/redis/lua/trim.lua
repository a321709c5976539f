-- TRIM: drop entries that every group is done with, and remember up to where (for a group lost and recreated).
-- KEYS: request stream, floor
-- Returns: how many entries were dropped
-- Both parts of an ID are 64-bit numbers, and Lua's lose digits beyond 2^53: IDs that a producer chose
-- itself may be that large. They are compared as text, and where arithmetic would lose digits, less is trimmed.
local EXACT_DIGITS = 15

local function parts(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if a_ms ~= b_ms then return less(a_ms, b_ms) end
  return less(a_seq, b_seq)
end

local function successor(id)
  local ms, seq = parts(id)
  if #seq > EXACT_DIGITS then return id end
  return ms .. '-' .. integer(tonumber(seq) + 1)
end

local function predecessor(id)
  local ms, seq = parts(id)
  if #seq > EXACT_DIGITS then return ms .. '-0' end
  if seq ~= '0' then return ms .. '-' .. integer(tonumber(seq) - 1) end
  if ms == '0' or #ms > EXACT_DIGITS then return '0-0' end
  return integer(tonumber(ms) - 1) .. '-18446744073709551615'
end

local keep_from = nil
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
  local needed = successor(info['last-delivered-id'])
  if tonumber(info['pending']) > 0 then
    needed = redis.call('XPENDING', KEYS[1], info['name'])[2]
  end
  if not keep_from or before(needed, keep_from) then keep_from = needed end
end
if not keep_from then return 0 end
-- XTRIM first: it frees memory, and is allowed where a full server refuses SET. A floor left low is harmless.
local dropped = redis.call('XTRIM', KEYS[1], 'MINID', '~', keep_from)
redis.call('SET', KEYS[2], predecessor(keep_from))
return dropped
