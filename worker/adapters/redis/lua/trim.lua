-- TRIM: drop entries that every group is done with, and remember up to where (for a group lost and recreated).
-- KEYS: request stream, floor
-- Returns: how many entries were dropped
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local function successor(id)
  local ms, seq = parts(id)
  return integer(ms) .. '-' .. integer(seq + 1)
end

local function predecessor(id)
  local ms, seq = parts(id)
  if seq > 0 then return integer(ms) .. '-' .. integer(seq - 1) end
  if ms == 0 then return '0-0' end
  return integer(ms - 1) .. '-18446744073709551615'
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
redis.call('SET', KEYS[2], predecessor(keep_from))
return redis.call('XTRIM', KEYS[1], 'MINID', '~', keep_from)
