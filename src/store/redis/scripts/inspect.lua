-- Reads what is known of a lock, at one moment. Whatever another client has put into its place or
-- its queue's is no error.
--
-- KEYS  1: the lock. 2: its queue. 3: its readers.
-- Returns the value, or what of it a token can have (nothing if it is no string); whether there is
-- one; its remaining ms (-1: no limit); the first 1000 places of the queue; and as many readers.
local value = redis.pcall('GETRANGE', KEYS[1], '0', '64')
local queue = redis.pcall('LRANGE', KEYS[2], '0', '999')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local readers = redis.pcall('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf', 'LIMIT', '0', '1000')
return {
  type(value) == 'string' and value or '',
  redis.call('EXISTS', KEYS[1]),
  redis.call('PTTL', KEYS[1]),
  queue.err and {} or queue,
  readers.err and {} or readers,
}
