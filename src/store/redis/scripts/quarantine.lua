-- Says for how long no lock may be given, as this server may not know of all leases that are valid.
-- A server that lost its data has no epoch. One that took over from another, or was started again
-- and may lack the last writes, has another replication id than the epoch.
--
-- KEYS  1: the epoch: which server has the data, and since when it may give locks.
-- ARGV  1: how long no lock is given after data was lost, in ms.
-- Returns the epoch, and how much longer no lock may be given, in ms: 0 or less is over.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local epoch = redis.call('GET', KEYS[1]) or ''
local known, ends = string.match(epoch, '^(%x+) (%d+)$')
if known ~= server then
  ends = now + ARGV[1]
  epoch = string.format('%s %.0f', server, ends)
  redis.call('SET', KEYS[1], epoch)
end
return { epoch, ends - now }
