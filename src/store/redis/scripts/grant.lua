-- Gives up what a token has: the lock, its share of it, or its place in the queue. A lock that is
-- free then goes to the first in the queue whose process listens to its inbox: to all readers that
-- stand there, if it is one. So does a lock that others share, to readers. Each is told.
--
-- KEYS  1: the lock. 2: its queue. 3: the counter of fences. 4: its readers.
-- ARGV  1: the token. 2: time to live of a grant, in ms. 3: what the name of a process's inbox
--       begins with. 4: a fence that the counter had already. 5: '1' if locks may be given.
-- Returns 1, + 1 if the token had the lock, + 2 if it went to another.
local call, lock, queue, readers, token = redis.call, KEYS[1], KEYS[2], KEYS[4], ARGV[1]
local value, may_give = call('GETRANGE', lock, '0', '64'), ARGV[5] == '1'
local had, is_shared, time = (value == token or value == token .. '!') and 1 or 0, false, nil
if value == 'shared' or value == 'shared!' then
  time = call('TIME')
  had = call('ZREM', readers, token)
  call('ZREMRANGEBYSCORE', readers, '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
  is_shared = call('EXISTS', readers) == 1
end
if had == 0 then
  if call('LREM', queue, '0', token) == 0 then
    call('LREM', queue, '0', token .. 's')
  end
  if not is_shared and (value ~= '' or call('EXISTS', lock) == 1) then
    return 1
  end
end
local given = {}
local next = may_give and not is_shared and call('LPOP', queue)
while next do
  local process, number, reads = string.match(next, '^(%x+):(%d+)(s?)$')
  -- PUBLISH would also count clients that watch all channels.
  if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    given[1] = { process, number }
    if reads == 's' then
      is_shared, time = true, call('TIME')
      call('DEL', readers)
    end
    break
  end
  next = call('LPOP', queue)
end
next = may_give and is_shared and call('LINDEX', queue, '0')
while next do
  local process, number = string.match(next, '^(%x+):(%d+)s$')
  if not process then
    break
  end
  call('LPOP', queue)
  if call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    given[#given + 1] = { process, number }
  end
  next = call('LINDEX', queue, '0')
end
local waiting = call('EXISTS', queue)
local mark = waiting == 1 and '!' or ''
for _, to in ipairs(given) do
  local fence = call('INCR', KEYS[3])
  if fence <= tonumber(ARGV[4]) then
    -- The counter was lost. It goes on from the clock.
    local now = call('TIME')
    fence = now[1] * 1000000 + now[2]
    call('SET', KEYS[3], string.format('%.0f', fence))
  end
  if is_shared then
    local ends = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
    call('ZADD', readers, ends, to[1] .. ':' .. to[2])
  end
  -- Lua's `format` would cut the name off at a NUL.
  local granted = string.format('g%s:%.0f:%s:%d:', to[2], fence, ARGV[2], waiting) .. lock
  call('PUBLISH', ARGV[3] .. to[1], granted)
end
if is_shared then
  -- The lock lasts for as long as the last of them.
  local last = call('ZRANGE', readers, '-1', '-1', 'WITHSCORES')[2]
  last = string.format('%.0f', last)
  call('PEXPIREAT', readers, last)
  call('SET', lock, 'shared' .. mark)
  call('PEXPIREAT', lock, last)
elseif given[1] then
  call('SET', lock, given[1][1] .. ':' .. given[1][2] .. mark, 'PX', ARGV[2])
elseif had == 1 then
  call('DEL', lock)
end
return 1 + had + (given[1] and 2 or 0)
