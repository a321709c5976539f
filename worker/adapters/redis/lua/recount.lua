-- RECOUNT: give back slots whose message does not hold them (any more).
-- KEYS: one scope's set of slots, one ledger per member   ARGV: scope, members
-- Returns: how many
local OPEN = {received = true, dispatching = true, running = true}
local freed = 0
for i = 2, #ARGV do
  local known = redis.call('HMGET', KEYS[i], 'state', 'slots')
  local name = string.sub(ARGV[i], 1, #ARGV[i] - #KEYS[i] - 1)
  local line = '\n' .. ARGV[1] .. '\t' .. name .. '\n'
  if not OPEN[known[1] or ''] or not string.find('\n' .. (known[2] or '') .. '\n', line, 1, true) then
    freed = freed + redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return freed
