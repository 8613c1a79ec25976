-- Takes a lock, or puts its token into the queue: for a token that may be known to Redis already,
-- and for one that waits. Goes on in parts/queue.lua.
--
-- KEYS  1: the lock. 2: its queue. 3: its readers.
-- ARGV  1: the token. 2: time to live of a lease, in ms. 3: what the name of a process's inbox
--       begins with. 4: '1' if the token may wait in the queue. 5: '1' if the lock may be a record.
-- Returns 1: acquired. 2: acquired, and processes wait. -(5 + 2 × remaining ms, -1 being no limit,
-- + 1 if the holder is a client of another kind): held elsewhere. The record, if there is one.
local call, lock, queue, token, ttl = redis.call, KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local value, waits = call('GETRANGE', lock, '0', '16384'), token
if value == '' and call('EXISTS', lock) == 0 then
  call('LREM', queue, '0', token)
  local waiting = call('EXISTS', queue)
  call('SET', lock, waiting == 1 and token .. '!' or token, 'PX', ttl)
  return 1 + waiting
elseif value == token or value == token .. '!' then
  call('PEXPIRE', lock, ttl)
  return value == token and 1 or 2
end
local process, number, mark = string.match(value, '^(%x+):(%d+)(!?)$')
if process and #process ~= 32 then
  process = nil
end
if ARGV[5] == '1' and not process then
  return value
end
local remaining, is_shared = call('PTTL', lock), false
if value == 'shared' or value == 'shared!' then
  -- The dead among the readers do not renew: the first to expire may be the last to hold.
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  local first = call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')[2]
  is_shared = first ~= nil
  remaining = is_shared and first - now or remaining
end
