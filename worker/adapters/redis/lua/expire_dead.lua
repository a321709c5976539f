-- EXPIRE_DEAD: drop dead letters that are too old, but none that was not announced a while before.
-- KEYS: dead-letter stream, notice   ARGV: retention milliseconds, notice milliseconds
-- Returns: {dropped, announced, milliseconds until the announced ones are dropped}
-- The notice is `<milliseconds of the newest letter meant>:<when it was given>`.
local now, retention, ahead = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
local dropped = 0
local upto, since = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+):(%d+)$')
if upto and now >= tonumber(since) + ahead then
  dropped = redis.call('XTRIM', KEYS[1], 'MINID', '=', integer(tonumber(upto) + 1))
  redis.call('DEL', KEYS[2])
  upto = nil
end
if not upto then
  local newest = now - retention + ahead
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not oldest or tonumber(string.match(oldest[1], '^%d+')) > newest then return {dropped, 0, 0} end
  upto, since = integer(newest), integer(now)
  redis.call('SET', KEYS[2], upto .. ':' .. since)
end
local meant = redis.call('XRANGE', KEYS[1], '-', upto, 'COUNT', 1000)
return {dropped, #meant, math.max(0, tonumber(since) + ahead - now)}
