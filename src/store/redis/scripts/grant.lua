-- Gives up what a token has: the lock, its share of it, or its place in the queue. A lock that is
-- free then goes to the first in the queue whose process listens to its inbox: to all readers that
-- stand there, if it is one. So does a lock that others share, to readers. Each is told.
-- Begins in parts/fence.lua, and goes on in parts/to_a_writer.lua and parts/to_readers.lua.
--
-- KEYS  1: the lock. 2: its queue. 3: the counter of fences. 4: its readers.
-- ARGV  1: the token. 2: time to live of a grant, in ms. 3: what the name of a process's inbox
--       begins with. 4: the floor of fences. 5: '1' if locks may be given.
-- Returns 1, + 1 if the token had the lock, + 2 if it went to another.
local lock, queue, readers, token = KEYS[1], KEYS[2], KEYS[4], ARGV[1]
local value, may_give = call('GETRANGE', lock, '0', '64'), ARGV[5] == '1'
local had, is_shared = (value == token or value == token .. '!') and 1 or 0, false
if value == 'shared' or value == 'shared!' then
  local time = call('TIME')
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
local function grant(process, number, waiting)
  local fence = draw_fence(KEYS[3], ARGV[4])
  -- Lua's `format` would cut the name off at a NUL.
  local granted = string.format('g%s:%.0f:%s:%d:', number, fence, ARGV[2], waiting) .. lock
  call('PUBLISH', ARGV[3] .. process, granted)
end
