-- Turns a dead letter back into a request: a new message, and the letter is gone, or nothing at all.
-- KEYS: dead-letter stream, request stream, marker
-- ARGV: dead letter's ID, request stream's short name, marker retention milliseconds, replay_of,
--       n, n names of the worker's own fields, m, m names to leave out, names and values to put in
-- Returns: {'requeued', '<stream>:<id>'} | {'gone'} | {'packed'}
-- The marker answers a repeat whose first answer was lost. Only commands of Redis 6.2; the first write is XADD.
local before = redis.call('GET', KEYS[3])
if before then return {'requeued', before} end
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if not found[1] then return {'gone'} end

local at = 5
local own, out, put = {}, {replay_of = true}, {}
for i = at + 1, at + tonumber(ARGV[at]) do own[ARGV[i]] = true end
at = at + tonumber(ARGV[at]) + 1
for i = at + 1, at + tonumber(ARGV[at]) do out[ARGV[i]] = true end
at = at + tonumber(ARGV[at]) + 1
for i = at, #ARGV, 2 do
  out[ARGV[i]] = true
  put[#put + 1] = ARGV[i]
  put[#put + 1] = ARGV[i + 1]
end

local flat, fields, seen, i = found[1][2], {}, {}, 1
while flat[i] and own[flat[i]] and not seen[flat[i]] do
  seen[flat[i]] = true
  i = i + 2
end
if flat[i] == 'dead_fields_msgpack' then return {'packed'} end
while flat[i] do
  if not out[flat[i]] then
    fields[#fields + 1] = flat[i]
    fields[#fields + 1] = flat[i + 1]
  end
  i = i + 2
end
for j = 1, #put do fields[#fields + 1] = put[j] end
fields[#fields + 1] = 'replay_of'
fields[#fields + 1] = ARGV[4]

local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
local message = ARGV[2] .. ':' .. id
redis.call('SET', KEYS[3], message, 'PX', ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[1])
return {'requeued', message}
