-- Lets a reader's lease last for a whole time to live again, if the process still shares the lock.
--
-- KEYS  1: the lock. 2: its readers.
-- ARGV  1: the token. 2: time to live of a lease, in ms.
-- Returns 2: renewed. 3: renewed, and processes wait. 1: the token has no share in the lock.
local call, lock, readers, token = redis.call, KEYS[1], KEYS[2], ARGV[1]
local value = call('GETRANGE', lock, '0', '64')
if value ~= 'shared' and value ~= 'shared!' or not call('ZSCORE', readers, token) then
  return 1
end
-- The lock lasts for as long as the last of them.
local time, lasts = call('TIME'), math.max(call('PTTL', lock), ARGV[2])
call('ZADD', readers, time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], token)
call('PEXPIRE', readers, lasts)
call('PEXPIRE', lock, lasts)
return value == 'shared' and 2 or 3
