
-- The end of grant.lua for a lock that others share, or that a reader is the next to have. All that
-- stand at the head of the queue share it then.
local given = {}
if next then
  call('DEL', readers)
  given[1] = next
end
next = may_give and call('LINDEX', queue, '0')
while next do
  local process = string.match(next, '^(%x+):%d+s$')
  if not process then
    break
  end
  call('LPOP', queue)
  if call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    given[#given + 1] = next
  end
  next = call('LINDEX', queue, '0')
end
local waiting, time = call('EXISTS', queue), call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
for _, to in ipairs(given) do
  local process, number = string.match(to, '^(%x+):(%d+)s$')
  grant(process, number, waiting)
  call('ZADD', readers, ends, process .. ':' .. number)
end
-- The lock lasts for as long as the last of them.
local last = string.format('%.0f', call('ZRANGE', readers, '-1', '-1', 'WITHSCORES')[2])
call('PEXPIREAT', readers, last)
call('SET', lock, waiting == 1 and 'shared!' or 'shared')
call('PEXPIREAT', lock, last)
return 1 + had + (given[1] and 2 or 0)
