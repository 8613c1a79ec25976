-- Carries out a batch of lock operations, in order.
--
-- KEYS  1: the highest fence given out so far. 2: the epoch.
--       Then for each operation: the lock name, and the name of the queue.
--       A lock is a plain string, the token of its holder, with an expiry: what SET NX PX makes.
--       A queue is a list of the tokens that wait, one for each process.
--       The epoch says which server has the data, and since when it may give locks: see
--       is_quarantined.
-- ARGV  1: what the name of a process's inbox channel begins with.
--       2: time to live of a lease, in ms.
--       3: time to live of a grant that its process has not renewed yet, in ms.
--       4: how long no lock is given after data was lost, in ms; 0: a loss of data is not noticed.
--       Then for each operation: what to do, and the token; to complete, also the record, and how
--       long to keep it, in ms.
--
-- Returns one value for each operation, which the comment above its function explains; 0 for an
-- error; -2 for an error of an acquire whose token has got something all the same. If there was an
-- error, its text follows behind all of them (that of the last one, if there were several).
--
-- A token is the process's id, a colon, and a number. Any other value of a lock is that of a client
-- of another kind; or, where records are kept, the record.

local call = redis.call
-- No token and no record has more bytes: a longer record is kept in parts, and its manifest is in
-- the lock's place. A longer value that another client wrote there is read up to one byte more,
-- which shows that it is no record: Lua is slow with long strings, and keeps Redis from its other
-- clients.
local LONG = 16384
local clock, epoch = KEYS[1], KEYS[2]
local inbox, ttl, grant_ttl, quarantine = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- Whether a holder may have a valid lease that this server knows nothing of. A server that lost its
-- data has no epoch. One that took over from another, or was started again and may lack the last
-- writes, has another replication id than the epoch.
local quarantined
local function is_quarantined()
  if quarantine == '0' then
    return false
  elseif quarantined == nil then
    local time = call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local server = string.match(call('INFO', 'replication'), 'master_replid:(%x+)')
    local known, ends = string.match(call('GET', epoch) or '', '^(%x+) (%d+)$')
    if known ~= server then
      ends = now + quarantine
      call('SET', epoch, string.format('%s %.0f', server, ends))
    end
    quarantined = now < tonumber(ends)
  end
  return quarantined
end

-- Fences follow the server's clock, in µs, so that they go on rising when all keys are lost. The
-- highest one is stored, so that they go on rising when the clock is set back.
local fence, stored
local function next_fence()
  if fence then
    fence = fence + 1
  else
    local now = call('TIME')
    stored = now[1] * 1000000 + now[2]
    -- One call stores the time and returns what was there. In the rare case that this was higher,
    -- it is put right below.
    fence = math.max(stored, 1 + (call('SET', clock, stored, 'GET') or 0))
  end
  return fence
end

-- The process's id and the number of a token; nothing for a client of another kind.
local function parts_of(token)
  local process, number = string.match(token, '^(%x+):(%d+)$')
  if process and #process == 32 then
    return process, number
  end
end

local function tell(process, message)
  call('PUBLISH', inbox .. process, message)
end

-- Whether a process listens to its inbox. (PUBLISH would also count clients that subscribe to all
-- channels by a pattern.)
local function is_there(process)
  return call('PUBSUB', 'NUMSUB', inbox .. process)[2] > 0
end

-- What is in the lock's place; false if nothing is.
local function read(lock_name)
  local current = call('GETRANGE', lock_name, 0, LONG)
  return (current ~= '' or call('EXISTS', lock_name) == 1) and current
end

local function some(count)
  return math.min(count, 1)
end

-- Whether the current acquire has got its token the lock, or a place in the queue.
local got

-- Acquired: 2 × fence, + 1 if processes wait. (An acquire that may not queue does not find out
-- whether they do: a lock that was free has waiters only after an accident, and the first renewal
-- tells.)
-- Held elsewhere: - (5 + 2 × remaining ms, -1 being no limit, + 1 if the holder is a client of
-- another kind).
-- Quarantined: -1. The record itself, if there is one.
local function acquire(lock_name, queue, token, may_queue, may_be_record)
  if is_quarantined() then
    return -1
  end
  if call('SET', lock_name, token, 'NX', 'PX', ttl) then
    got = true
    local waiting = may_queue and call('LLEN', queue) or 0
    if waiting > 0 then
      waiting = waiting - call('LREM', queue, 0, token)
    end
    return 2 * next_fence() + some(waiting)
  end
  local current = read(lock_name)
  if current == token then
    got = true
    call('PEXPIRE', lock_name, ttl)
    return 2 * next_fence() + some(call('LLEN', queue))
  end
  local process, number = parts_of(current)
  if may_be_record and not process then
    return current
  end
  local remaining = call('PTTL', lock_name)
  if may_queue then
    local length = not call('LPOS', queue, token) and call('RPUSH', queue, token)
    got = true
    if length == 1 and process then
      tell(process, 'w' .. number .. ':' .. lock_name)
    end
    -- Every waiter acquires again within the holder's time to live, or its own. So by the time a
    -- queue expires, all processes in it are dead. Its expiry is never shortened: another process,
    -- with a longer time to live, may acquire less often than this one.
    local lasts = math.max(remaining, 0) + 3 * ttl
    if call('PTTL', queue) < lasts then
      call('PEXPIRE', queue, lasts)
    end
  end
  return -(5 + 2 * remaining + (process and 0 or 1))
end

-- Gives the lock to the first token in the queue whose process listens. Returns whether there was
-- one.
local function grant(lock_name, queue)
  if is_quarantined() then
    return false
  end
  local token = call('LPOP', queue)
  while token do
    local process, number = parts_of(token)
    if process and is_there(process) then
      local fence = next_fence()
      call('SET', lock_name, token, 'PX', grant_ttl)
      local contended = some(call('LLEN', queue))
      local granted = string.format('g%s:%.0f:%s:%d:', number, fence, grant_ttl, contended)
      tell(process, granted .. lock_name)
      return true
    end
    token = call('LPOP', queue)
  end
  return false
end

-- 1, + 1 if the token had the lock, + 2 if the lock went to the next in the queue.
local function release(lock_name, queue, token)
  local current = read(lock_name)
  if current ~= token then
    call('LREM', queue, 0, token)
    if current then
      return 1
    end
  end
  local reply = current and 2 or 1
  if grant(lock_name, queue) then
    return reply + 2
  end
  if current then
    call('DEL', lock_name)
  end
  return reply
end

-- 2: the record is in the lock's place, by this call or by an earlier one whose reply was lost.
-- 1: the lock is not this token's.
local function complete(lock_name, queue, token, record, retention)
  local current = read(lock_name)
  if current == record then
    return 2
  elseif current ~= token then
    return 1
  end
  call('SET', lock_name, record, 'PX', retention)
  for _, waiting in ipairs(call('LRANGE', queue, 0, -1)) do
    local process, number = parts_of(waiting)
    if process then
      tell(process, 'c' .. number .. ':' .. lock_name)
    end
  end
  call('DEL', queue)
  return 2
end

-- 2: renewed. 3: renewed, and processes wait. 1: the lock is not this token's.
local function renew(lock_name, queue, token)
  if read(lock_name) ~= token then
    return 1
  end
  call('PEXPIRE', lock_name, ttl)
  return 2 + some(call('LLEN', queue))
end

-- 2: the lock is this token's. 1: it is not. This writes nothing: Redis tells the clients that
-- track a name of every write to it, in whatever database, and another process would check in its
-- turn.
local function check(lock_name, token)
  return read(lock_name) == token and 2 or 1
end

local replies, failure, number, at, last = {}, nil, 0, 5, #ARGV
local function carry_out_the_rest()
  while at <= last do
    local operation, token = ARGV[at], ARGV[at + 1]
    number, at, got = number + 1, at + 2, false
    local lock_name, queue = KEYS[2 * number + 1], KEYS[2 * number + 2]
    if operation == 'release' then
      replies[number] = release(lock_name, queue, token)
    elseif operation == 'renew' then
      replies[number] = renew(lock_name, queue, token)
    elseif operation == 'check' then
      replies[number] = check(lock_name, token)
    elseif operation == 'complete' then
      at = at + 2
      replies[number] = complete(lock_name, queue, token, ARGV[at - 2], ARGV[at - 1])
    else
      local may_queue = operation == 'queue' or operation == 'claim and queue'
      local may_be_record = operation == 'claim' or operation == 'claim and queue'
      replies[number] = acquire(lock_name, queue, token, may_queue, may_be_record)
    end
  end
end

-- A call without operations only checks the epoch: a quarantine that is due begins.
if at > last then
  is_quarantined()
end
while at <= last do
  local ok, reason = pcall(carry_out_the_rest)
  if not ok then
    failure = type(reason) == 'table' and reason.err or tostring(reason)
    replies[number] = got and -2 or 0
  end
end
if fence and fence ~= stored then
  call('SET', clock, fence)
end
replies[number + 1] = failure
return replies
