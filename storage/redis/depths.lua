-- Counts what is queued, and in some lanes. Changes nothing.
--
-- KEYS  1 queue  2 runs  3 lanes  4 what names of ready sets begin with  5 the same of delayed sets
-- ARGV  1 epoch  2 token expected; then lanes
-- Answers {'ok', runs in all, lanes in all, entries in each lane named...}. {'fenced', the higher epoch that stands} or {'lost'}: the queue
-- is not as the caller left it.

local state = redis.call('HMGET', KEYS[1], 'epoch', 'token')
if state[1] and tonumber(state[1]) > tonumber(ARGV[1]) then
  return {'fenced', state[1]}
end
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
  return {'lost'}
end
local answer = {'ok', redis.call('HLEN', KEYS[2]), redis.call('SCARD', KEYS[3])}
for i = 3, #ARGV do
  answer[#answer + 1] = redis.call('ZCARD', KEYS[4] .. ARGV[i]) + redis.call('ZCARD', KEYS[5] .. ARGV[i])
end
return answer
