-- Slots of caps. A ledger's `slots` names those its message holds: lines of `<scope> TAB <name>`.
local SCOPES = {total = 0, stream = 1, job = 2, namespace = 3, tenant = 4}

-- Give back what a message holds. `first` is the number of the first of the scopes' keys.
local function free_slots(slots, first, ledger)
  for scope, name in string.gmatch(slots or '', '([^\t\n]+)\t([^\n]*)') do
    if SCOPES[scope] then redis.call('ZREM', KEYS[first + SCOPES[scope]], name .. '\t' .. ledger) end
  end
end

local function take_slots(slots, first, ledger)
  for scope, name in string.gmatch(slots or '', '([^\t\n]+)\t([^\n]*)') do
    if SCOPES[scope] then redis.call('ZADD', KEYS[first + SCOPES[scope]], 0, name .. '\t' .. ledger) end
  end
end
