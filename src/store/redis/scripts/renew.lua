-- Lets a lease last for a whole time to live again, if the lock is still the token's.
--
-- KEYS  1: the lock.
-- ARGV  1: the token. 2: time to live of a lease, in ms.
-- Returns 2: renewed. 3: renewed, and processes wait. 1: the lock is not the token's.
local value = redis.call('GETRANGE', KEYS[1], '0', '64')
local reply = value == ARGV[1] and 2 or value == ARGV[1] .. '!' and 3 or 1
if reply > 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return reply
