-- The messages of a session, the selected path, and the index of their ids.

-- The largest size of the messages in one reply, in bytes, so that no call blocks Redis for long.
-- Only a single larger message exceeds it.
local BATCH_BYTES = 524288
-- The largest number of messages in one reply.
local BATCH_MESSAGES = 250

-- What Redis takes for a message besides its header and content, about: fields of two hashes and an
-- entry of a list.
local MESSAGE_BYTES = 160
-- From so many messages on, Redis keeps a hash of them as a table in any case.
local MANY_MESSAGES = 500
-- Fields of one call, at most: Lua passes only so many values.
local FIELDS_AT_ONCE = 1000

-- Returns the number of the last message of the selected path, 0 where there is none.
local function last_of_path(keys)
  return string.match(redis.call('LINDEX', keys.path, -1) or '0', '^%d+')
end

-- Returns the id of a message, the first field of its header. A pattern would take three times as long.
local function id_of(entry)
  local _, at = string.find(entry, '"i":"', 1, true)
  return string.sub(entry, at + 1, at + 36)
end

-- Adds a message, with the number of its parent, to the end of the selected path. The id of an answer
-- is that of its generation, so that the index finds the answer of a generation.
local function push_entry(keys, entry)
  local number = redis.call('HINCRBY', keys.session, 'last_message', 1)
  redis.call('HSET', keys.messages, number, entry)
  redis.call('RPUSH', keys.path, number .. ' ' .. #entry)
  redis.call('HSET', keys.index, id_of(entry), number)
  redis.call('HINCRBY', keys.session, 'bytes', #entry + MESSAGE_BYTES)
end

-- Adds a message to the end of the selected path.
local function push_message(keys, header, content)
  push_entry(keys, last_of_path(keys) .. ' ' .. header .. '\n' .. content)
end

-- Adds a message that is <json header>\n<content> to the end of the selected path. It is copied once
-- only: Lua takes over a millisecond for each megabyte of a new string.
local function push_whole_message(keys, message)
  push_entry(keys, last_of_path(keys) .. ' ' .. message)
end

-- Calls a command with a list of values, as many at once as it takes.
local function call_in_parts(command, key, values)
  for from = 1, #values, FIELDS_AT_ONCE do
    redis.call(command, key, unpack(values, from, math.min(from + FIELDS_AT_ONCE - 1, #values)))
  end
end

-- Returns a message without the number of its parent: <json header>\n<content>.
local function without_parent(entry)
  return string.sub(entry, string.find(entry, ' ', 1, true) + 1)
end

-- Has Redis keep a hash as a table at once. It would search a compact hash for each new field, which
-- takes it over a millisecond until that has 512.
local function keep_as_table(key)
  redis.call('HSET', key, '', string.rep(' ', 65))
  redis.call('HDEL', key, '')
end

-- Adds the messages that a turn brings, each <number before it> <json header>\n<content>, to the end of
-- the selected path. There may be a thousand, with a megabyte: calls for each of them, and a copy of
-- each, would take Redis too long.
local function push_conversation_messages(keys, messages)
  local before = redis.call('HINCRBY', keys.session, 'last_message', #messages) - #messages
  if #messages >= MANY_MESSAGES then
    keep_as_table(keys.index)
  end
  local fields, path, index, bytes = {}, {}, {}, 0
  local parent = last_of_path(keys)
  for i, entry in ipairs(messages) do
    local number = before + i
    if before > 0 then
      entry = parent .. ' ' .. without_parent(entry)
      parent = number
    end
    fields[2 * i - 1], fields[2 * i] = number, entry
    path[i] = number .. ' ' .. #entry
    index[2 * i - 1], index[2 * i] = id_of(entry), number
    bytes = bytes + #entry + MESSAGE_BYTES
  end
  call_in_parts('HSET', keys.messages, fields)
  call_in_parts('RPUSH', keys.path, path)
  call_in_parts('HSET', keys.index, index)
  redis.call('HINCRBY', keys.session, 'bytes', bytes)
end

-- Returns the id of a generation's question: that of the generation with its last bit flipped.
local function question_of(generation)
  local last = tonumber(string.sub(generation, -1), 16)
  return string.sub(generation, 1, -2) .. string.format('%x', last + 1 - 2 * (last % 2))
end

-- Stores the question and the request of a turn that waits.
local function put_waiting_question(keys, generation, header, content, turn)
  local question = header .. '\n' .. content
  redis.call('HSET', keys.messages, generation, question, 'turn:' .. generation, turn)
  redis.call('HINCRBY', keys.session, 'bytes', #question + #turn)
end

-- Removes the question and the request of a turn that no longer waits, and returns them.
local function take_waiting_question(keys, generation)
  local stored = redis.call('HMGET', keys.messages, generation, 'turn:' .. generation)
  redis.call('HDEL', keys.messages, generation, 'turn:' .. generation)
  redis.call('HINCRBY', keys.session, 'bytes', -#stored[1] - #stored[2])
  return stored[1], stored[2]
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
