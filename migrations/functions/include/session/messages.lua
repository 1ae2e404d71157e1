-- The messages of a session, and the way to them.

-- Bytes of messages that one call reads, at most, but for one message that is larger alone: a call
-- must not hold up Redis.
local STEP_BYTES = 524288
-- Messages that one call reads, at most.
local STEP_MESSAGES = 500

-- Adds a message to the end of the selected path. `generation` is that of an answer, else nil.
local function push_message(keys, generation, header, content)
  local number = redis.call('HINCRBY', keys.session, 'last_message', 1)
  local parent = redis.call('LINDEX', keys.path, -1) or '0'
  local entry = parent .. ' ' .. header .. '\n' .. content
  redis.call('HSET', keys.messages, number, entry)
  redis.call('RPUSH', keys.path, number)
  redis.call('HSET', keys.index, string.match(header, '"id":"([%x-]+)"'), number)
  if generation then
    redis.call('HSET', keys.index, generation, number)
  end
  redis.call('HINCRBY', keys.session, 'bytes', #entry)
end

-- A message without the number of its parent: <json header>\n<content>.
local function without_parent(entry)
  return string.sub(entry, string.find(entry, ' ', 1, true) + 1)
end

local function message_at(keys, position)
  return redis.call('HGET', keys.messages, redis.call('LINDEX', keys.path, position))
end

-- The place of a message on the selected path, 0 the oldest, or nil where it is not on it.
local function position_of(keys, number)
  local low, high = 0, redis.call('LLEN', keys.path) - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local there = tonumber(redis.call('LINDEX', keys.path, middle))
    if there == number then
      return middle
    elseif there < number then
      low = middle + 1
    else
      high = middle - 1
    end
  end
end

-- The stored answer of a generation that has ended, or nil.
local function ended_answer(keys, generation)
  local number = redis.call('HGET', keys.index, generation)
  if not number then
    return nil
  end
  local entry = redis.call('HGET', keys.messages, number)
  local _, at = line(entry, 1)
  return string.sub(entry, at)
end
