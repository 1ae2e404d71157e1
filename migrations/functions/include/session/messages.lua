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
  redis.call('HSET', keys.index, string.match(header, '"i":"([%x-]+)"'), number)
  redis.call('HINCRBY', keys.session, 'bytes', #entry)
end

-- Returns the id of a generation's question: that of the generation with its last bit flipped.
local function question_of(generation)
  local last = tonumber(string.sub(generation, -1), 16)
  return string.sub(generation, 1, -2) .. string.format('%x', last + 1 - 2 * (last % 2))
end

-- Stores the question of a turn that waits.
local function put_waiting_question(keys, generation, header, content)
  local question = header .. '\n' .. content
  redis.call('HSET', keys.messages, generation, question)
  redis.call('HINCRBY', keys.session, 'bytes', #question)
end

-- Removes the question of a turn that no longer waits, and returns it.
local function take_waiting_question(keys, generation)
  local question = redis.call('HGET', keys.messages, generation)
  redis.call('HDEL', keys.messages, generation)
  redis.call('HINCRBY', keys.session, 'bytes', -#question)
  return question
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

-- Returns the header of the message with this id, and its content from an offset on; nil where there is
-- none. A large text is copied once only.
local function find_message(keys, id, from)
  local number = redis.call('HGET', keys.index, id)
  if number then
    local entry = redis.call('HGET', keys.messages, number)
    local at = string.find(entry, '\n', 1, true)
    return string.sub(entry, string.find(entry, ' ', 1, true) + 1, at - 1),
      string.sub(entry, at + 1 + from)
  end
end

-- Returns the content of a generation's question, while it waits, too; empty where it was cleared.
local function question_content(keys, generation)
  local _, content = find_message(keys, question_of(generation), 0)
  if content then
    return content
  end
  local waiting = redis.call('HGET', keys.messages, generation)
  return waiting and string.sub(waiting, string.find(waiting, '\n', 1, true) + 1) or ''
end
