-- The beginning of acquire.lua, share.lua and grant.lua.
local call = redis.call

-- Draws a fence, larger than all that the counter had before. If it is not above the floor, the
-- counter was lost, or is to follow the clock: it goes on from there. Comes before anything is
-- given, as it may fail.
local function draw_fence(counter, floor)
  local fence = call('INCR', counter)
  if fence <= tonumber(floor) then
    local now = call('TIME')
    local clock = now[1] * 1000000 + now[2]
    if fence < clock then
      fence = clock
      call('SET', counter, string.format('%.0f', fence))
    end
  end
  return fence
end

