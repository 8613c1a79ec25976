-- Lets a process share a lock with others, or puts its token into the queue. Begins in
-- parts/fence.lua, and goes on in parts/queue.lua.
--
-- KEYS  1: the lock. 2: its queue. 3: its readers. 4: the counter of fences.
-- ARGV  1: the token. 2: time to live of a lease, in ms. 3: what the name of a process's inbox
--       begins with. 4: the floor of fences. 5: '1' if the token may wait in the queue.
-- Returns {the fence, 1 if processes wait}: acquired. -(5 + 2 × remaining ms, -1 being no limit,
-- + 1 if the holder is a client of another kind): held elsewhere.
local lock, queue, readers, token = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local value, waits, ttl = call('GETRANGE', lock, '0', '64'), token .. 's', tonumber(ARGV[2])
local is_free = value == '' and call('EXISTS', lock) == 0
local is_shared = (value == 'shared' or value == 'shared!') and call('EXISTS', readers) == 1
local first = value ~= 'shared' and is_shared and call('LINDEX', queue, '0')
-- One whose process is gone keeps no reader out.
while first do
  local process = string.match(first, '^(%x+):%d+s?$')
  if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    break
  end
  call('LPOP', queue)
  first = call('LINDEX', queue, '0')
end
if is_free then
  call('DEL', readers)
end
-- No process gets past those that wait.
if is_free or is_shared and (not first or first == waits or call('ZSCORE', readers, token)) then
  local fence = draw_fence(KEYS[4], ARGV[4])
  call('LREM', queue, '0', waits)
  local waiting, time = call('EXISTS', queue), call('TIME')
  local lasts = math.max(call('PTTL', lock), ttl)
  call('ZADD', readers, time[1] * 1000 + math.floor(time[2] / 1000) + ttl, token)
  call('PEXPIRE', readers, lasts)
  call('SET', lock, waiting == 1 and 'shared!' or 'shared', 'PX', lasts)
  return { fence, waiting }
end
local process, number, mark = string.match(value, '^(%x+):(%d+)(!?)$')
process = process and #process == 32 and process
local remaining = call('PTTL', lock)
