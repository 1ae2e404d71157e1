-- The branches of a session: the selected path, and the parts of other branches.
--
-- The path is a string of entries of 8 bytes: the number of a message, and its length as it is stored.
-- So a part of it is copied, cut off or put back in one step, however many messages it has.
--
-- The messages are a tree, and each is in one place: on the path, or in one strand. A strand is the rest
-- of a path behind a message that has another child selected, and is known by its first message. The
-- hash `branches` has these fields; a session that never branched does not have the hash:
--   <number>    the strand that begins with this message, as the path had it
--   c<number>   the ids of all children of this message (0: of none), where it has had several, in the
--               order of their numbers, with a blank between two
--
-- An anchor says where a turn goes that does not just follow the path:
--   =<id>   beside this answer: its question is answered once more
--   +<id>   beside this question: another one is asked in its place
--   ><id>   behind this message, which is on the path unless a failover lost its selection

-- Bytes of an entry of the path.
local ENTRY_BYTES = 8
-- The largest number of children of one message.
local MOST_SIBLINGS = 50
-- What Redis takes for one of several children, about.
local SIBLING_BYTES = 165
-- How often a turn tries to begin beside a message that a failover lost, and that comes back soon.
local ORPHAN_TRIES = 10

-- Returns the number of messages on the path.
local function path_length(keys)
  return redis.call('STRLEN', keys.path) / ENTRY_BYTES
end

-- Returns number and length of the message at a position of the path, 0 the oldest and -1 the newest;
-- nil where there is none.
local function path_entry(keys, position)
  local from = position * ENTRY_BYTES
  local entry = redis.call('GETRANGE', keys.path, from, from + ENTRY_BYTES - 1)
  if #entry == ENTRY_BYTES then
    return struct.unpack('>I4I4', entry)
  end
end

-- Returns the number of the newest message on the path; 0 where there is none.
local function last_number(keys)
  return path_entry(keys, -1) or 0
end

-- Returns the position of a message on the path, 0 the oldest, or nil where it is not on it.
local function position_of(keys, number)
  local low, high = 0, path_length(keys) - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local found = path_entry(keys, middle)
    if found == number then
      return middle
    elseif found < number then
      low = middle + 1
    else
      high = middle - 1
    end
  end
end

-- Returns the number of the parent of a stored message, its id and its role; nil where there is none.
local function kin_of(keys, number)
  local entry = redis.call('HGET', keys.messages, number)
  if entry then
    local parent, id, role = string.match(entry, '^(%d+) {"i":"([%x-]+)","r":"(%a+)"')
    return tonumber(parent), id, role
  end
end

-- Returns the number of the message with this id.
local function number_of(keys, id)
  return tonumber(redis.call('HGET', keys.index, id) or nil)
end

-- Returns the ids of all children of a message that has had several.
local function children_of(keys, number)
  return redis.call('HGET', keys.branches, 'c' .. number) or ''
end

-- Returns the number of the ids in such a list. Each has 36 characters.
local function count_ids(list)
  return math.floor((#list + 1) / 37)
end

-- Returns the entry of a message on the path.
local function path_bytes(number, length)
  return struct.pack('>I4I4', number, length)
end

-- Adds entries to the end of the path.
local function append_path(keys, entries)
  redis.call('SETRANGE', keys.path, path_length(keys) * ENTRY_BYTES, entries)
end

-- Adds a message to the end of the path. Returns what the branches take more.
local function push_path(keys, parent, number, length, id)
  append_path(keys, path_bytes(number, length))
  local siblings = children_of(keys, parent)
  if siblings == '' then
    return 0
  end
  redis.call('HSET', keys.branches, 'c' .. parent, siblings .. ' ' .. id)
  return SIBLING_BYTES
end

-- Replaces the path behind its first `length` messages by a strand, which may be empty, and keeps what
-- was there as a strand.
local function replace_rest(keys, length, strand)
  local from = length * ENTRY_BYTES
  local rest = redis.call('GETRANGE', keys.path, from, -1)
  if rest ~= '' then
    redis.call('HSET', keys.branches, struct.unpack('>I4', rest), rest)
  end
  if #strand >= #rest then
    redis.call('SETRANGE', keys.path, from, strand)
  else
    local kept = from > 0 and redis.call('GETRANGE', keys.path, 0, from - 1) or ''
    redis.call('SET', keys.path, kept .. strand, 'KEEPTTL')
  end
  return rest
end

-- Ends the path behind its first `length` messages, so that the next message is a sibling of the one
-- that followed.
local function cut_path(keys, length)
  local parent = length > 0 and path_entry(keys, length - 1) or 0
  local rest = replace_rest(keys, length, '')
  if rest ~= '' then
    local _, id = kin_of(keys, struct.unpack('>I4', rest))
    if redis.call('HSETNX', keys.branches, 'c' .. parent, id) == 1 then
      redis.call('HINCRBY', keys.session, 'bytes', SIBLING_BYTES)
    end
  end
end

-- Selects a strand whose parent is on the path. Returns false where there is no such strand.
local function select_strand(keys, head)
  local strand = redis.call('HGET', keys.branches, head)
  local parent = strand and kin_of(keys, head)
  local position = parent and (parent == 0 and -1 or position_of(keys, parent))
  if not position then
    return false
  end
  redis.call('HDEL', keys.branches, head)
  replace_rest(keys, position + 1, strand)
  return true
end

-- Returns the number of messages on the path that stay before a turn with this anchor. Else nil, and
-- `elsewhere` where the anchor is on another branch, or `orphan` where it is not there.
local function anchor_position(keys, anchor)
  local number = number_of(keys, string.sub(anchor, 2))
  if string.sub(anchor, 1, 1) == '>' then
    if number and not position_of(keys, number) then
      return nil, 'elsewhere'
    end
    return path_length(keys)
  end
  local parent = number and kin_of(keys, number)
  if not parent then
    return nil, 'orphan'
  elseif parent == 0 then
    return 0
  end
  local position = position_of(keys, parent)
  if not position then
    return nil, 'elsewhere'
  end
  return position + 1
end

-- Returns the number of turns that will add a child to this message: the running one and waiting ones.
local function siblings_to_come(keys, parent, is_running)
  local count = 0
  if is_running and last_number(keys) == parent then
    count = 1
  end
  for _, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
    local anchor = words(entry)[5]
    local number = anchor and number_of(keys, string.sub(anchor, 2))
    if number and string.sub(anchor, 1, 1) ~= '>' and kin_of(keys, number) == parent then
      count = count + 1
    end
  end
  return count
end

-- Returns why a turn is refused that would go beside a message, or nil: `message` (there is no such
-- message), `role` (it is no answer to a question, or no question), `running` (the answer is still
-- being written) or `siblings` (it has as many as it may).
local function anchor_refusal(keys, anchor, running)
  local kind, id = string.sub(anchor, 1, 1), string.sub(anchor, 2)
  if id == running then
    return kind == '=' and 'running' or 'role'
  end
  local number = number_of(keys, id)
  if not number then
    return 'message'
  end
  local parent, _, role = kin_of(keys, number)
  if kind == '=' then
    local _, _, asked = kin_of(keys, parent)
    if role ~= 'assistant' or (asked ~= 'user' and asked ~= 'tool') then
      return 'role'
    end
  elseif role ~= 'user' then
    return 'role'
  end
  local known = math.max(count_ids(children_of(keys, parent)), 1)
  if known + siblings_to_come(keys, parent, running) >= MOST_SIBLINGS then
    return 'siblings'
  end
end
