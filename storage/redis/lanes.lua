-- Describes the lanes as they are at a time. Changes nothing. Its cost grows with the number of lanes.
--
-- KEYS  1 runs  2 lanes  3 what names of ready sets begin with  4 the same of delayed sets
-- ARGV  1 now
-- Answers {{lane, ready, delayed, ready time of the first delayed one or '', Order of the first ready one or ''}, ...}.

local answer = {}
for _, lane in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local ready, delayed = KEYS[3] .. lane, KEYS[4] .. lane
  local first = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')[2]
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', ARGV[1])
  for _, id in ipairs(due) do -- nobody has popped since they became ready
    local value = redis.call('HGET', KEYS[1], id)
    if value then
      local priority, readyAt = string.match(value, '^(%d+) (%-?%d+)')
      local order = readyAt - priority * 60000000
      if not first or order < tonumber(first) then first = string.format('%.0f', order) end
    end
  end
  local nextAt = redis.call('ZRANGEBYSCORE', delayed, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  answer[#answer + 1] = {lane, redis.call('ZCARD', ready) + #due, redis.call('ZCARD', delayed) - #due, nextAt or '', first or ''}
end
return answer
