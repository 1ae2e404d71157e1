-- The branches of a session: the selected path, and the parts of other branches.
--
-- The path is a string of entries of 8 bytes: the number of a message, and its length as it is stored.
-- So a part of it is copied, cut off or put back in one step, however many messages it has.
--
-- The messages are a tree, and each is in one place: on the path, or in one strand. A strand is the rest
-- of a path behind a message that has another child selected, and is known by its first message, its
-- head. The hash `branches` has these fields; a session that never branched does not have the hash:
--   <number>    the strand that begins with this message, as the path had it
--   c<number>   the ids of all children of this message (0: of none), where it has had several, in the
--               order of their numbers, with a blank between two
--
-- The strand of a message is found without a walk over its messages. A chain is a message, its first
-- child, the first child of that, and so on: what is asked and answered without another branch in
-- between. It is known by the number of its first message, and the first chain of a session by 0. Each
-- message is in one chain forever. The heads in the chain of a message tell its strand: the newest of
-- those that are not newer than the message. Where there is none, the message is where the parent of
-- its chain is. The sorted set `chains` has these members, all with the score 0, so that they are
-- sorted as texts; a number in them is 8 hexadecimal digits:
--   c<first> <chain>                    the messages from this number up to the next such member are in
--                                       this chain
--   c<first> <chain> <parent> <its chain>   the same, where the chain begins with this message
--   s<chain><head><parent>              the strand that begins with this message of this chain

-- An anchor says where a turn goes that does not just follow the path:
--   =<id>   beside this answer: its question is answered once more
--   +<id>   beside this question: another one is asked in its place
--   ><id>   behind this message, which is on the path unless a failover lost its selection

-- Bytes of an entry of the path.
local ENTRY_BYTES = 8
-- The largest number of children of one message.
local MOST_SIBLINGS = 50
-- Bytes that Redis takes for one of several children, about: its strand, its id, and two members of `chains`.
local SIBLING_BYTES = 365
-- Bytes that Redis takes for a member of `chains`, about.
local CHAIN_BYTES = 100
-- Strands and messages with several children of one session, at most: so many chains may lie between a
-- message and the first one.
local MOST_BRANCHES = 10000
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

-- Returns a number as the members of `chains` have it.
local function digits(number)
  return string.format('%08x', number)
end

-- Returns the first member of `chains` from one text down to another, or nil.
local function member_below(keys, from, down_to)
  return redis.call('ZRANGE', keys.chains, '[' .. from, '[' .. down_to, 'BYLEX', 'REV', 'LIMIT', 0, 1)[1]
end

-- Returns the chain of a message, as digits.
local function chain_of(keys, number)
  local member = member_below(keys, 'c' .. digits(number) .. '~', 'c')
  return member and string.sub(member, 11, 18) or digits(0)
end

-- Returns the number of the message before a chain, and that message's chain; 0 where there is none.
local function before_chain(keys, chain)
  local member = member_below(keys, 'c' .. chain .. '~', 'c' .. chain)
  return tonumber(member and string.sub(member, 20, 27) or '0', 16), member and string.sub(member, 29)
end

-- Notes the chain of the message that is added next, where that is not the chain of the last one that
-- was added. Returns what Redis takes for it.
local function note_chain(keys, number, parent, is_first_child)
  if is_first_child and (parent == number - 1 or parent == 0) then
    return 0
  end
  local chain = parent == 0 and digits(0) or chain_of(keys, parent)
  local member = 'c' .. digits(number) .. ' '
  if is_first_child then
    member = member .. chain
  else
    member = member .. digits(number) .. ' ' .. digits(parent) .. ' ' .. chain
  end
  redis.call('ZADD', keys.chains, 0, member)
  return CHAIN_BYTES
end

-- Returns the id of a message, the first field of its header. A pattern would take three times as long.
local function id_of(entry)
  local _, at = string.find(entry, '"i":"', 1, true)
  return string.sub(entry, at + 1, at + 36)
end

-- Stores a strand, whose head follows this message.
local function put_strand(keys, strand, parent)
  local head = struct.unpack('>I4', strand)
  redis.call('HSET', keys.branches, head, strand)
  redis.call('ZADD', keys.chains, 0, 's' .. chain_of(keys, head) .. digits(head) .. digits(parent))
end

-- Returns the number of the message with this id.
local function number_of(keys, id)
  return tonumber(redis.call('HGET', keys.index, id) or nil)
end

-- Returns the number of a message with this id that is not in the index.
local function unindexed_number_of(keys, id)
  for other = 1, tonumber(redis.call('HGET', keys.session, 'unindexed') or 0) do
    if id_of(redis.call('HGET', keys.messages, other)) == id then
      return other
    end
  end
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
  local of_chain = note_chain(keys, number, parent, siblings == '')
  if siblings == '' then
    return of_chain
  end
  redis.call('HSET', keys.branches, 'c' .. parent, siblings .. ' ' .. id)
  return SIBLING_BYTES
end

-- Replaces the path behind its first `length` messages, the last of which is `parent`, by the parts of a
-- strand, listed from its end on, and keeps what was there as a strand. Returns that. The parts are not joined:
-- Redis reads each byte of a new text to find whether Lua has the same already (1.5 ns a byte), which takes
-- longer than all else.
local function replace_rest(keys, length, parent, parts)
  local from, bytes = length * ENTRY_BYTES, 0
  for _, part in ipairs(parts) do
    bytes = bytes + #part
  end
  local rest = redis.call('GETRANGE', keys.path, from, -1)
  if rest ~= '' then
    put_strand(keys, rest, parent)
  end
  if bytes < #rest then
    local kept = from > 0 and redis.call('GETRANGE', keys.path, 0, from - 1) or ''
    redis.call('SET', keys.path, kept, 'KEEPTTL')
  end
  for i = #parts, 1, -1 do
    redis.call('SETRANGE', keys.path, from, parts[i])
    from = from + #parts[i]
  end
  return rest
end

-- Ends the path behind its first `length` messages, so that the next message is a sibling of the one
-- that followed.
local function cut_path(keys, length)
  local parent = length > 0 and path_entry(keys, length - 1) or 0
  local rest = replace_rest(keys, length, parent, {})
  if rest ~= '' and redis.call('HEXISTS', keys.branches, 'c' .. parent) == 0 then
    local _, id = kin_of(keys, struct.unpack('>I4', rest))
    redis.call('HSET', keys.branches, 'c' .. parent, id)
    redis.call('HINCRBY', keys.session, 'bytes', SIBLING_BYTES)
  end
end

-- Returns the number of messages on the path that stay before a turn with this anchor. Else nil, and
-- `elsewhere` where the anchor is on another branch, or `orphan` where it is not there. `parent` is the
-- number of the message before the anchor's; nil where that is not known.
local function anchor_position(keys, anchor, parent)
  local number = number_of(keys, string.sub(anchor, 2))
  if string.sub(anchor, 1, 1) == '>' then
    if number and not position_of(keys, number) then
      return nil, 'elsewhere'
    end
    return path_length(keys)
  end
  parent = number and (parent or kin_of(keys, number))
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

-- Returns the number of the message before that of an anchor beside which a turn goes; nil where there is
-- no such message, or the turn goes behind one. It is stored with a turn that waits: to read it from the
-- message takes Redis the longer, the larger that is.
local function anchor_parent(keys, anchor)
  if string.find(anchor, '^[=+]') then
    local number = number_of(keys, string.sub(anchor, 2))
    return number and kin_of(keys, number)
  end
end

-- Returns the number of turns that will add a child to this message: the running one and waiting ones.
local function siblings_to_come(keys, parent, is_running)
  local count = 0
  if is_running and last_number(keys) == parent then
    count = 1
  end
  for _, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
    if tonumber(words(entry)[6] or nil) == parent then
      count = count + 1
    end
  end
  return count
end

-- Returns why a turn is refused that would go beside a message, or nil: `message` (there is no such
-- message), `role` (it is no answer to a question, or no question), `running` (the answer is still
-- being written), `siblings` (it has as many as it may) or `full` (the session has as many branches as it
-- may). Returns also the number of the message's parent.
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
  return redis.call('HLEN', keys.branches) >= MOST_BRANCHES and 'full' or nil, parent
end
