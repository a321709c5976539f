-- Put in front of scripts that only the owner may run: KEYS[1] ledger; ARGV[1] owner, ARGV[2] fence.
local known = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'state', 'attempt', 'seq')
if known[1] ~= ARGV[1] or known[2] ~= ARGV[2] or known[3] == 'settled' then
  return {'fenced', known[1] or '', known[2] or '', known[3] or ''}
end
local state, attempt, seq = known[3], known[4] or '0', tonumber(known[5] or '0')
