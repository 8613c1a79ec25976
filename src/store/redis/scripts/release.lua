-- Deletes a lock that is the token's and that no process waits for.
--
-- KEYS  1: the lock.
-- ARGV  1: the token.
-- Returns 2: deleted. 3: the lock is the token's, and processes wait: nothing was done. 1: the lock
-- is not the token's.
local value = redis.call('GETRANGE', KEYS[1], '0', '64')
if value == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return 2
end
return value == ARGV[1] .. '!' and 3 or 1
