-- RELEASE: a worker leaves; others may take all it held at once, and its leaving counts against no message.
-- KEYS: workers, worker   ARGV: name
redis.call('HSET', KEYS[2], 'released', 1)
-- For as long as all workers may be stopped, so that the next one knows.
redis.call('PEXPIRE', KEYS[2], 604800000)
redis.call('ZREM', KEYS[1], ARGV[1])
return {'ok'}
