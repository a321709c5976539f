-- INTENT: from now on a dispatch may be on its way to Nomad. Repeated before each repeat of the request.
-- KEYS: ledger   ARGV: owner, fence, attempt, quarantine milliseconds, time
-- Returns: {'ok', quarantine_until, cancel} | {'cancelled'} | {'fenced', ...} | {'state', state}
if state ~= 'received' and not (state == 'dispatching' and attempt == ARGV[3]) then
  return {'state', state}
end
local cancel = redis.call('HGET', KEYS[1], 'cancel')
-- The promise given to whoever cancelled: what is not dispatched by then never is.
if cancel and state == 'received' then return {'cancelled'} end
local quarantine_until = integer(now_ms() + tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], 'state', 'dispatching', 'attempt', ARGV[3],
  'intended_at', ARGV[5], 'quarantine_until', quarantine_until)
return {'ok', quarantine_until, cancel or ''}
