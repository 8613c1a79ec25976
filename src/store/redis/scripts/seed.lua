-- Sets the counter of fences to the server's clock, in µs, unless it is higher: so fences go on
-- rising when all keys are lost, and when the clock is set back.
--
-- KEYS  1: the counter.
-- Returns what the counter has then.
local now = redis.call('TIME')
local counter, clock = redis.call('GET', KEYS[1]), now[1] * 1000000 + now[2]
if not counter or tonumber(counter) < clock then
  counter = string.format('%.0f', clock)
  redis.call('SET', KEYS[1], counter)
end
return tonumber(counter)
