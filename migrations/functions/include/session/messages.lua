-- The messages of a session, the selected path, and the index of their ids.

-- The largest size of the messages in one reply, in bytes, so that no call blocks Redis for long.
-- Only a single larger message exceeds it.
local BATCH_BYTES = 524288
-- The largest number of messages in one reply.
local BATCH_MESSAGES = 250

-- Bytes that Redis takes for a message in addition to its header and content, about: fields of two hashes and
-- an entry of the path.
local MESSAGE_BYTES = 160
-- Bytes that Redis takes for a turn that waits in addition to its question and its request, about: two
-- fields, and its entries in `waiting` and in the index of open turns.
local WAITING_BYTES = 600
-- Messages of a session, at most: a call that selects a branch reads and writes the path, 8 bytes a message, and
-- may not take Redis long.
local MOST_MESSAGES = 110000
-- Fields of one call, at most: Lua passes only so many values.
local FIELDS_AT_ONCE = 1000

-- Adds a message, with the number of its parent, to the end of the selected path. The id of an answer
-- is that of its generation, so that the index finds the answer of a generation.
local function push_entry(keys, parent, entry)
  local number, id = redis.call('HINCRBY', keys.session, 'last_message', 1), id_of(entry)
  redis.call('HSET', keys.messages, number, entry)
  local of_branches = push_path(keys, parent, number, #entry, id)
  redis.call('HSET', keys.index, id, number)
  redis.call('HINCRBY', keys.session, 'bytes', #entry + MESSAGE_BYTES + of_branches)
end

-- Adds a message to the end of the selected path.
local function push_message(keys, header, content)
  local parent = last_number(keys)
  push_entry(keys, parent, parent .. ' ' .. header .. '\n' .. content)
end

-- Adds a message that is <json header>\n<content> to the end of the selected path. It is copied once
-- only: Lua takes over a millisecond for each megabyte of a new string.
local function push_whole_message(keys, message)
  local parent = last_number(keys)
  push_entry(keys, parent, parent .. ' ' .. message)
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

-- The texts of small numbers: Redis takes a third of a microsecond to write a number.
local number_texts = {}

-- Adds the messages that a turn brings, each <number before it> <json header>\n<content>, to the end of
-- the selected path. There may be a thousand, with a megabyte: calls for each of them, and a copy of
-- each, would take Redis too long.
local function push_conversation_messages(keys, messages)
  local before = redis.call('HINCRBY', keys.session, 'last_message', #messages) - #messages
  local fields, path, index, bytes = {}, {}, {}, 0
  local parent = last_number(keys)
  for i, entry in ipairs(messages) do
    local number = before + i
    if before > 0 then
      entry = parent .. ' ' .. without_parent(entry)
      parent = number
      index[2 * i - 1], index[2 * i] = id_of(entry), number
    end
    local text = number_texts[number] or tostring(number)
    if number <= FIELDS_AT_ONCE then
      number_texts[number] = text
    end
    fields[2 * i - 1], fields[2 * i] = text, entry
    path[i] = path_bytes(number, #entry)
    bytes = bytes + #entry + MESSAGE_BYTES
  end
  call_in_parts('HSET', keys.messages, fields)
  append_path(keys, table.concat(path))
  call_in_parts('HSET', keys.index, index)
  redis.call('HSET', keys.session, 'unindexed', before == 0 and #messages or 0)
  redis.call('HINCRBY', keys.session, 'bytes', bytes)
end

-- Returns the id of a generation's question: that of the generation with its last bit flipped.
local function question_of(generation)
  local last = tonumber(string.sub(generation, -1), 16)
  return string.sub(generation, 1, -2) .. string.format('%x', last + 1 - 2 * (last % 2))
end

-- Bytes that Redis takes for the mark of a hidden request, about.
local HIDDEN_BYTES = 120

-- Returns the field that marks the request of a turn as hidden from the clients of its front.
local function hidden_field(generation)
  return 'hidden:' .. generation
end

-- Stores the question and the request of a turn that waits.
local function put_waiting_question(keys, generation, header, content, turn)
  local question = header .. '\n' .. content
  redis.call('HSET', keys.messages, generation, question, 'turn:' .. generation, turn)
  redis.call('HINCRBY', keys.session, 'bytes', #question + #turn + WAITING_BYTES)
end

-- Removes the question and the request of a turn that no longer waits, and returns them.
local function take_waiting_question(keys, generation)
  local stored = redis.call('HMGET', keys.messages, generation, 'turn:' .. generation)
  redis.call('HDEL', keys.messages, generation, 'turn:' .. generation)
  redis.call('HINCRBY', keys.session, 'bytes', -#stored[1] - #stored[2] - WAITING_BYTES)
  return stored[1], stored[2]
end

-- Returns the stored message at a position on the selected path.
local function message_at(keys, position)
  return redis.call('HGET', keys.messages, (path_entry(keys, position)))
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
