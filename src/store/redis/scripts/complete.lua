-- Puts a record in the place of a lock that is still the token's, and tells all that wait for it.
--
-- KEYS  1: the lock. 2: its queue.
-- ARGV  1: the token. 2: the record. 3: how long to keep it, in ms. 4: what the name of a process's
--       inbox begins with.
-- Returns 2: the record is there, by this call or by one whose reply was lost. 1: the lock is not
-- the token's.
local call, lock, queue, token, record = redis.call, KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local value = call('GETRANGE', lock, '0', '16384')
if value == record then
  return 2
elseif value ~= token and value ~= token .. '!' then
  return 1
end
call('SET', lock, record, 'PX', ARGV[3])
-- A queue can be there without a mark: its first token's lock expired, and another took it.
local queued = call('LRANGE', queue, '0', '-1')
for _, waiting in ipairs(queued) do
  local process, number = string.match(waiting, '^(%x+):(%d+)$')
  if process then
    call('PUBLISH', ARGV[4] .. process, 'c' .. number .. ':' .. lock)
  end
end
if queued[1] then
  call('DEL', queue)
end
return 2
