-- Gives up what a token has, the lock or its place in the queue. A lock that is free then goes to
-- the first in the queue whose process listens to its inbox, which is told.
--
-- KEYS  1: the lock. 2: its queue. 3: the counter of fences.
-- ARGV  1: the token. 2: time to live of a grant, in ms. 3: what the name of a process's inbox
--       begins with. 4: a fence that the counter had already. 5: '1' if locks may be given.
-- Returns 1, + 1 if the token had the lock, + 2 if the lock went to the next.
local call, lock, queue, token = redis.call, KEYS[1], KEYS[2], ARGV[1]
local value = call('GETRANGE', lock, '0', '64')
local had = (value == token or value == token .. '!') and 1 or 0
if had == 0 then
  call('LREM', queue, '0', token)
  if value ~= '' or call('EXISTS', lock) == 1 then
    return 1
  end
end
local next = ARGV[5] == '1' and call('LPOP', queue)
while next do
  local process, number = string.match(next, '^(%x+):(%d+)$')
  -- PUBLISH would also count clients that watch all channels.
  if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    local fence = call('INCR', KEYS[3])
    if fence <= tonumber(ARGV[4]) then
      -- The counter was lost. It goes on from the clock.
      local now = call('TIME')
      fence = now[1] * 1000000 + now[2]
      call('SET', KEYS[3], string.format('%.0f', fence))
    end
    local waiting = call('EXISTS', queue)
    call('SET', lock, waiting == 1 and next .. '!' or next, 'PX', ARGV[2])
    local granted = string.format('g%s:%.0f:%s:%d:%s', number, fence, ARGV[2], waiting, lock)
    call('PUBLISH', ARGV[3] .. process, granted)
    return 3 + had
  end
  next = call('LPOP', queue)
end
if had == 1 then
  call('DEL', lock)
end
return 1 + had
