-- One step of the leader: takes runs out, puts entries in, and pops, in this order. Each part may be empty.
--
-- KEYS  1 queue  2 runs  3 lanes  4 what names of ready sets begin with  5 the same of delayed sets
-- ARGV  1 epoch  2 token expected  3 token of the state after this  4 now  5 how many entries a lane holds
--       6 number of runs to take out  7 of entries  8 of lanes that get entries  9 of lanes to pop from; then these:
--       each run to take out:    id
--       each entry, each once:   id, "PRIORITY READY-AT LANE"
--       each lane to put into:   lane, number of ready entries, of delayed ones,
--                                each ready one: Order, id; each delayed one: ready time, id
--       each lane to pop from:   lane, how many at most
-- Touches KEYS[4]..lane and KEYS[5]..lane of the lanes named and of those in which the runs named are now.
-- Answers {'ok', {id, value, ...} popped, {id, value, ...} of the entries that a full lane had no room for}.
-- {'fenced', the higher epoch that stands} or {'lost'}: the queue is not as the caller left it; then nothing has changed.

local queue, runs, lanes, ready, delayed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local out, put, into, wants = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local at = 10 -- the argument that is next
local slice = 1000 -- even; Lua unpacks no more than some thousand values at once

local state = redis.call('HMGET', queue, 'epoch', 'token')
if state[1] and tonumber(state[1]) > tonumber(ARGV[1]) then
  return {'fenced', state[1]}
end
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
  return {'lost'}
end
redis.call('HSET', queue, 'token', ARGV[3])

-- each calls a command with a part of a list.
local function each(command, key, list, first, last)
  for i = first, last, slice do
    redis.call(command, key, unpack(list, i, math.min(i + slice - 1, last)))
  end
end

-- withValues calls use(id, value) for each of the ids that is queued.
local function withValues(ids, use)
  for i = 1, #ids, slice do
    local last = math.min(i + slice - 1, #ids)
    local values = redis.call('HMGET', runs, unpack(ids, i, last))
    for j = i, last do
      local value = values[j - i + 1]
      if value then use(ids[j], value) end
    end
  end
end

local shrunk = {} -- lanes that may be empty now

-- What is taken out leaves its lane, and what is put in leaves the one where it is.
local ids = {}
for i = at, at + out - 1 do ids[#ids + 1] = ARGV[i] end
for i = at + out, at + out + 2 * put - 1, 2 do ids[#ids + 1] = ARGV[i] end
local leaving = {}
withValues(ids, function(id, value)
  local lane = string.match(value, '^%d+ %-?%d+ (.*)$')
  if not leaving[lane] then leaving[lane] = {} end
  table.insert(leaving[lane], id)
end)
for lane, list in pairs(leaving) do
  each('ZREM', ready .. lane, list, 1, #list)
  each('ZREM', delayed .. lane, list, 1, #list)
  shrunk[lane] = true
end
each('HDEL', runs, ARGV, at, at + out - 1)
at = at + out
each('HSET', runs, ARGV, at, at + 2 * put - 1)
at = at + 2 * put

-- promote makes ready what is due.
local function promote(lane)
  while true do
    local due = redis.call('ZRANGEBYSCORE', delayed .. lane, '-inf', ARGV[4], 'LIMIT', 0, slice / 2)
    if #due == 0 then return end
    local members = {}
    withValues(due, function(id, value)
      local priority, readyAt = string.match(value, '^(%d+) (%-?%d+)')
      members[#members + 1] = string.format('%.0f', readyAt - priority * 60000000)
      members[#members + 1] = id
    end)
    each('ZREM', delayed .. lane, due, 1, #due)
    each('ZADD', ready .. lane, members, 1, #members)
  end
end

-- evict takes up to n entries out of one end of a set; what nobody knows goes without a word.
local left = {}
local function evict(set, n)
  while n > 0 do
    local members = redis.call('ZPOPMAX', set, math.min(n, slice / 2))
    if #members == 0 then return end
    local gone = {}
    for i = 1, #members, 2 do gone[#gone + 1] = members[i] end
    withValues(gone, function(id, value)
      left[#left + 1] = id
      left[#left + 1] = value
    end)
    each('HDEL', runs, gone, 1, #gone)
    n = n - #gone
  end
end

for _ = 1, into do
  local lane, nReady, nDelayed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  redis.call('SADD', lanes, lane) -- first: whatever is in the way of what follows is removed with the lane
  each('ZADD', ready .. lane, ARGV, at, at + 2 * nReady - 1)
  at = at + 2 * nReady
  each('ZADD', delayed .. lane, ARGV, at, at + 2 * nDelayed - 1)
  at = at + 2 * nDelayed
  local later = redis.call('ZCARD', delayed .. lane)
  if redis.call('ZCARD', ready .. lane) + later > room then
    promote(lane)
    later = redis.call('ZCARD', delayed .. lane)
    local over = redis.call('ZCARD', ready .. lane) + later - room
    evict(delayed .. lane, math.min(over, later))
    evict(ready .. lane, over - later)
    shrunk[lane] = true
  end
end

-- What is ready is popped. An earlier call may have come with a later time, and have promoted what is not ready at this one.
local popped = {}
for _ = 1, wants do
  local lane, missing = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  promote(lane)
  shrunk[lane] = true
  while missing > 0 do
    local members = redis.call('ZPOPMIN', ready .. lane, math.min(missing, slice / 2))
    if #members == 0 then break end
    local first, gone, early = {}, {}, {}
    for i = 1, #members, 2 do first[#first + 1] = members[i] end
    withValues(first, function(id, value)
      local readyAt = string.match(value, '^%d+ (%-?%d+)')
      if tonumber(readyAt) <= now then
        popped[#popped + 1] = id
        popped[#popped + 1] = value
        gone[#gone + 1] = id
        missing = missing - 1
      else
        early[#early + 1] = readyAt
        early[#early + 1] = id
      end
    end)
    each('HDEL', runs, gone, 1, #gone)
    each('ZADD', delayed .. lane, early, 1, #early)
  end
end

for lane in pairs(shrunk) do
  if redis.call('EXISTS', ready .. lane, delayed .. lane) == 0 then
    redis.call('SREM', lanes, lane)
  end
end
return {'ok', popped, left}
