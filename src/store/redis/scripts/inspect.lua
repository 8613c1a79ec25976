-- Reads what is known of a lock, at one moment. Whatever another client has put into its place or
-- its queue's is no error.
--
-- KEYS  1: the lock. 2: its queue.
-- Returns the value, or what of it a token can have (nothing if it is no string); whether there is
-- one; its remaining ms (-1: no limit); and the first 1000 tokens of the queue.
local value = redis.pcall('GETRANGE', KEYS[1], '0', '64')
local queue = redis.pcall('LRANGE', KEYS[2], '0', '999')
return {
  type(value) == 'string' and value or '',
  redis.call('EXISTS', KEYS[1]),
  redis.call('PTTL', KEYS[1]),
  queue.err and {} or queue,
}
