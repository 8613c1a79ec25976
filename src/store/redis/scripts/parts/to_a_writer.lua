
-- The end of grant.lua for the first in the queue, if it is a writer or there is none.
local next, reads = may_give and not is_shared and call('LPOP', queue), nil
while next do
  local process, number
  process, number, reads = string.match(next, '^(%x+):(%d+)(s?)$')
  -- PUBLISH would also count clients that watch all channels.
  if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then
    if reads == '' then
      local waiting = call('EXISTS', queue)
      grant(process, number, waiting)
      call('SET', lock, waiting == 1 and next .. '!' or next, 'PX', ARGV[2])
      return 3 + had
    end
    break
  end
  next = call('LPOP', queue)
end
if not next and not is_shared then
  if had == 1 then
    call('DEL', lock)
  end
  return 1 + had
end
