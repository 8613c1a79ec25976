-- Sets the counter of fences to the server's clock, in µs, unless it is higher: so fences go on
-- rising when all keys are lost, and when the clock is set back.
--
-- KEYS  1: the counter.
-- Returns what the counter has then.
local now = redis.call('TIME')
local clock = string.format('%.0f', now[1] * 1000000 + now[2])
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(clock) then
  redis.call('SET', KEYS[1], clock)
end
return tonumber(redis.call('GET', KEYS[1]))
