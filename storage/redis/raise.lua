-- Raises the epoch, and names the state as the caller will: so whoever wrote before, at whatever epoch, is told that it has
-- lost the queue. Empties nothing.
--
-- An epoch that is ahead by more than leaders ever raise it is of foreign hands and does not count: the cluster would go
-- above it, and there are only 2^32.
--
-- KEYS  1 queue
-- ARGV  1 epoch  2 token of the state after this
-- Answers {'ok', epoch}, or {'fenced', the higher epoch that stands} and changes nothing.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then -- foreign hands, or none
  redis.call('UNLINK', KEYS[1])
end
local stands = redis.call('HGET', KEYS[1], 'epoch')
local ahead = (tonumber(stands or '') or 0) - tonumber(ARGV[1])
if ahead > 0 and ahead < 10000000 then
  return {'fenced', stands}
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'token', ARGV[2])
return {'ok', ARGV[1]}
