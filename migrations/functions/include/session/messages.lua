-- The messages of a session, the selected path, and the index of their ids.

-- The largest size of the messages in one reply, in bytes, so that no call blocks Redis for long.
-- Only a single larger message exceeds it.
local BATCH_BYTES = 524288
-- The largest number of messages in one reply.
local BATCH_MESSAGES = 250

-- Adds a message to the end of the selected path. The id of an answer is that of its generation, so
-- that the index finds the answer of a generation.
local function push_message(keys, header, content)
  local number = redis.call('HINCRBY', keys.session, 'last_message', 1)
  local parent = string.match(redis.call('LINDEX', keys.path, -1) or '0', '^%d+')
  local entry = parent .. ' ' .. header .. '\n' .. content
  redis.call('HSET', keys.messages, number, entry)
  redis.call('RPUSH', keys.path, number .. ' ' .. #entry)
  redis.call('HSET', keys.index, string.match(header, '"id":"([%x-]+)"'), number)
  redis.call('HINCRBY', keys.session, 'bytes', #entry)
end

-- Returns a message without the number of its parent: <json header>\n<content>.
local function without_parent(entry)
  return string.sub(entry, string.find(entry, ' ', 1, true) + 1)
end

-- Returns the stored message at a position on the selected path.
local function message_at(keys, position)
  local number = string.match(redis.call('LINDEX', keys.path, position), '^%d+')
  return redis.call('HGET', keys.messages, number)
end

-- Returns the position of a message on the selected path, 0 the oldest, or nil where it is not on
-- it.
local function position_of(keys, number)
  local low, high = 0, redis.call('LLEN', keys.path) - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local found = tonumber(string.match(redis.call('LINDEX', keys.path, middle), '^%d+'))
    if found == number then
      return middle
    elseif found < number then
      low = middle + 1
    else
      high = middle - 1
    end
  end
end

-- Returns the stored answer of an ended generation from an offset on, or nil where there is none.
local function ended_answer(keys, generation, from)
  local number = redis.call('HGET', keys.index, generation)
  if not number then
    return nil
  end
  local entry = redis.call('HGET', keys.messages, number)
  return string.sub(entry, string.find(entry, '\n', 1, true) + 1 + from)
end
