-- OCCUPY: a message in hand holds the slots that it should by the limits as they are now, full or not.
-- KEYS: ledger, 5 sets of slots   ARGV: owner, fence, slots
-- Returns: {'ok'} | {'fenced', ...}
local held = redis.call('HGET', KEYS[1], 'slots')
if (held or '') ~= ARGV[3] then
  redis.call('HSET', KEYS[1], 'slots', ARGV[3])
  free_slots(held, 2, KEYS[1])
end
take_slots(ARGV[3], 2, KEYS[1])
return {'ok'}
