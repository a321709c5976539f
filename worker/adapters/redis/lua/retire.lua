-- RETIRE: delete a consumer that has no lease and holds nothing.
-- KEYS: workers, request streams   ARGV: group, name
-- Returns: 1 deleted, 0 not
if not lease_over(KEYS[1], ARGV[2]) then return 0 end
for i = 2, #KEYS do
  if #redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
end
redis.call('ZREM', KEYS[1], ARGV[2])
for i = 2, #KEYS do redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2]) end
return 1
