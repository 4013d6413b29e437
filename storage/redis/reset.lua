-- Empties the queue, some lanes at a time; the first call forgets all runs, so what is left in lanes is nobody's.
--
-- KEYS  1 queue  2 runs  3 lanes  4 what names of ready sets begin with  5 the same of delayed sets
-- ARGV  1 epoch  2 token expected  3 token of the state after this  4 how many lanes at most
-- Touches KEYS[4]..lane and KEYS[5]..lane of the lanes in KEYS[3].
-- Answers {'ok', lanes that are still to be emptied}. {'fenced', the higher epoch that stands} or {'lost'}: the queue is not
-- as the caller left it; then nothing has changed.

local state = redis.call('HMGET', KEYS[1], 'epoch', 'token')
if state[1] and tonumber(state[1]) > tonumber(ARGV[1]) then
  return {'fenced', state[1]}
end
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
  return {'lost'}
end
redis.call('HSET', KEYS[1], 'token', ARGV[3])
redis.call('UNLINK', KEYS[2])
if redis.call('TYPE', KEYS[3]).ok ~= 'set' then -- foreign hands, or none
  redis.call('UNLINK', KEYS[3])
  return {'ok', 0}
end
for _, lane in ipairs(redis.call('SPOP', KEYS[3], ARGV[4])) do
  redis.call('UNLINK', KEYS[4] .. lane, KEYS[5] .. lane)
end
return {'ok', redis.call('SCARD', KEYS[3])}
