-- Takes a lock, or puts its token into the queue: for a token that may be known to Redis already,
-- and for one that waits. Begins in parts/fence.lua, and goes on in parts/queue.lua.
--
-- KEYS  1: the lock. 2: its queue. 3: its readers. 4: the counter of fences.
-- ARGV  1: the token. 2: time to live of a lease, in ms. 3: what the name of a process's inbox
--       begins with. 4: the floor of fences. 5: '1' if the token may wait in the queue. 6: '1' if
--       the lock may be a record.
-- Returns {the fence, 1 if processes wait}: acquired. -(5 + 2 × remaining ms, -1 being no limit,
-- + 1 if the holder is a client of another kind): held elsewhere. The record, if there is one.
local lock, queue, readers, token, ttl = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
local value, waits = call('GETRANGE', lock, '0', '16384'), token
if value == '' and call('EXISTS', lock) == 0 then
  local fence = draw_fence(KEYS[4], ARGV[4])
  call('LREM', queue, '0', token)
  local waiting = call('EXISTS', queue)
  call('SET', lock, waiting == 1 and token .. '!' or token, 'PX', ttl)
  return { fence, waiting }
elseif value == token or value == token .. '!' then
  local fence = draw_fence(KEYS[4], ARGV[4])
  call('PEXPIRE', lock, ttl)
  return { fence, value == token and 0 or 1 }
end
local process, number, mark = string.match(value, '^(%x+):(%d+)(!?)$')
process = process and #process == 32 and process
if ARGV[6] == '1' and not process then
  return value
end
local remaining, is_shared = call('PTTL', lock), false
if value == 'shared' or value == 'shared!' then
  -- The dead among the readers do not renew: the first to expire may be the last to hold.
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  call('ZREMRANGEBYSCORE', readers, '-inf', now)
  local first = call('ZRANGE', readers, '0', '0', 'WITHSCORES')[2]
  is_shared = first ~= nil
  remaining = is_shared and first - now or remaining
end
