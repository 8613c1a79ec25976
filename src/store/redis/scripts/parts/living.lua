-- The beginning of renew_shared.lua, and part of share.lua.

-- Returns the first in the queue whose process listens to its inbox. Those before it are gone, and
-- keep no reader out.
local function first_alive(queue, inboxes)
  local first = redis.call('LINDEX', queue, '0')
  while first do
    local process = string.match(first, '^(%x+):%d+s?$')
    if process and redis.call('PUBSUB', 'NUMSUB', inboxes .. process)[2] > 0 then
      return first
    end
    redis.call('LPOP', queue)
    first = redis.call('LINDEX', queue, '0')
  end
end

