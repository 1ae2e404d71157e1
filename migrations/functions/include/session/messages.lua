-- The messages of a session, and the way to them.

-- Bytes of messages that one call gives, at most, but for one message that is larger alone: a call
-- must not hold up Redis.
local STEP_BYTES = 524288
-- Messages that one call gives, at most.
local STEP_MESSAGES = 250

-- Adds a message to the end of the selected path. The id of an answer is its generation's: so the
-- index finds an answer by either.
local function push_message(keys, header, content)
  local number = redis.call('HINCRBY', keys.session, 'last_message', 1)
  local parent = string.match(redis.call('LINDEX', keys.path, -1) or '0', '^%d+')
  local entry = parent .. ' ' .. header .. '\n' .. content
  redis.call('HSET', keys.messages, number, entry)
  redis.call('RPUSH', keys.path, number .. ' ' .. #entry)
  redis.call('HSET', keys.index, string.match(header, '"id":"([%x-]+)"'), number)
  redis.call('HINCRBY', keys.session, 'bytes', #entry)
end

-- A message without the number of its parent: <json header>\n<content>.
local function without_parent(entry)
  return string.sub(entry, string.find(entry, ' ', 1, true) + 1)
end

local function message_at(keys, position)
  local number = string.match(redis.call('LINDEX', keys.path, position), '^%d+')
  return redis.call('HGET', keys.messages, number)
end

-- The place of a message on the selected path, 0 the oldest, or nil where it is not on it.
local function position_of(keys, number)
  local low, high = 0, redis.call('LLEN', keys.path) - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local there = tonumber(string.match(redis.call('LINDEX', keys.path, middle), '^%d+'))
    if there == number then
      return middle
    elseif there < number then
      low = middle + 1
    else
      high = middle - 1
    end
  end
end

-- The stored answer of a generation that has ended, after its first bytes, or nil.
local function ended_answer(keys, generation, from)
  local number = redis.call('HGET', keys.index, generation)
  if not number then
    return nil
  end
  local entry = redis.call('HGET', keys.messages, number)
  return string.sub(entry, string.find(entry, '\n', 1, true) + 1 + from)
end
