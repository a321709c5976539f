-- Reads dead letters: what the worker wrote about each and, when asked for, the request's own fields.
-- KEYS: dead-letter stream   ARGV: first ID, last ID, count, whole (1 or 0), names of the worker's own fields
-- Returns: {ID, {the worker's names and values}, payload bytes, number of the request's fields, its fields}...
-- The worker's fields come first, each at most once: a request's own field of such a name cannot pose as one.
local own = {}
for i = 5, #ARGV do own[ARGV[i]] = true end

local read = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])) do
  local flat, head, rest, seen, payload = entry[2], {}, {}, {}, 0
  local i = 1
  while flat[i] and own[flat[i]] and not seen[flat[i]] do
    seen[flat[i]] = true
    head[#head + 1] = flat[i]
    head[#head + 1] = flat[i + 1]
    i = i + 2
  end
  local fields = (#flat - i + 1) / 2
  while flat[i] do
    if flat[i] == 'payload' then payload = #flat[i + 1] end
    if ARGV[4] == '1' then
      rest[#rest + 1] = flat[i]
      rest[#rest + 1] = flat[i + 1]
    end
    i = i + 2
  end
  read[#read + 1] = {entry[1], head, payload, fields, rest}
end
return read
