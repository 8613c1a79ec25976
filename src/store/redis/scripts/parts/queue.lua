
-- The end of acquire.lua and share.lua, for a lock that others hold.
if ARGV[5] == '1' then
  local length = not call('LPOS', queue, waits) and call('RPUSH', queue, waits)
  -- Every waiter asks again within the holder's time to live, or its own, so all in a queue that
  -- expires are dead. Its expiry is never shortened: another process may ask less often than this.
  local lasts = math.max(remaining, 0) + 3 * ttl
  if length == 1 or call('PTTL', queue) < lasts then
    call('PEXPIRE', queue, lasts)
  end
  if process and mark == '' then
    call('SET', lock, value .. '!', 'KEEPTTL')
    call('PUBLISH', ARGV[3] .. process, 'w' .. number .. ':' .. lock)
  elseif is_shared and value == 'shared' then
    call('SET', lock, 'shared!', 'KEEPTTL')
    for _, reader in ipairs(call('ZRANGE', readers, '0', '-1')) do
      process, number = string.match(reader, '^(%x+):(%d+)$')
      call('PUBLISH', ARGV[3] .. process, 'w' .. number .. ':' .. lock)
    end
  end
end
return -(5 + 2 * remaining + ((process or is_shared) and 0 or 1))
