-- Shared by every script; put in front of each.
-- Rules: read and check first; the first write is one that maxmemory refuses (XADD, HSET), for Redis
-- checks memory only at a script's first write; XACK comes last. Only commands of Redis 6.2.
-- Fields and values come "packed", as one argument: an array of strings in MessagePack. Each argument costs the
-- worker, and Redis, more than the few bytes in it.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function integer(number)
  return string.format('%.0f', number)
end

-- Whether a worker's lease is over, released, or never was.
local function lease_over(workers, name)
  local deadline = redis.call('ZSCORE', workers, name)
  return not deadline or tonumber(deadline) <= now_ms()
end

-- XADD with a bounded length (0: unbounded). Returns the new entry's ID.
local function append(stream, maxlen, fields)
  if tonumber(maxlen) > 0 then
    return redis.call('XADD', stream, 'MAXLEN', '~', maxlen, '*', unpack(fields))
  end
  return redis.call('XADD', stream, '*', unpack(fields))
end

local function with_seq(fields, seq)
  fields[#fields + 1] = 'seq'
  fields[#fields + 1] = integer(seq)
  return fields
end

-- The consumer that holds an entry as pending, or nil.
local function holder(stream, group, id)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)
  return pending[1] and pending[1][2]
end
