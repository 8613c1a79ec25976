-- Deletes a record. A lock stays.
--
-- KEYS  1: the record.
-- Returns what was deleted, as far as it may be a manifest: nothing, if it is no record.
local value = redis.call('GETRANGE', KEYS[1], '0', '16384')
local process = string.match(value, '^(%x+):%d+!?$')
if value == '' or process and #process == 32 then
  return ''
end
redis.call('DEL', KEYS[1])
return value
