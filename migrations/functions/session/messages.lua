-- Reads a batch of messages of the selected path, bounded in bytes. After the reply `more` the
-- caller continues with the rest of its range and bytes.
--
-- Keys:       session, messages, path, branches
-- Arguments:  owner
--             first, last    positions on the path; negative ones count from the end
--             bytes          the largest size of the messages
--             newest_first   1: from the last message back; 0: from the first message on
--             at_least_one   1: the first message is returned even if it is larger than `bytes`
-- Reply:      absent
--             as describe up to these marks, then <more|end> <position of the first message>
--             <the id of the message before that, or -; empty in a session that never branched>
--             <number of messages with siblings>, of each of those its position in the reply, 0 the
--             first, and the ids of all children of its parent; and the messages, oldest first, as they
--             are stored
-- Called by:  Store::page, Store::newest, Store::page_before
-- Adds to a reply what the branches of the session are to these messages, of which the first is at a
-- position of the path.

local function append_siblings(keys, reply, begin, entries)
  if #entries == 0 or redis.call('EXISTS', keys.branches) == 0 then
    reply[#reply + 1] = ''
    reply[#reply + 1] = '0'
    return
  end
  local before = begin > 0 and path_entry(keys, begin - 1)
  local _, id = kin_of(keys, before or 0)
  reply[#reply + 1] = id or '-'
  local parents = {}
  for i = 1, #entries do
    parents[i] = 'c' .. string.match(entries[i], '^%d+')
  end
  local children, found = redis.call('HMGET', keys.branches, unpack(parents)), {}
  for i = 1, #entries do
    if children[i] and count_ids(children[i]) > 1 then
      found[#found + 1] = tostring(i - 1)
      found[#found + 1] = children[i]
    end
  end
  reply[#reply + 1] = tostring(#found / 2)
  for i = 1, #found do
    reply[#reply + 1] = found[i]
  end
end

register {
  name = 'messages',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path', 'branches' },
  arguments = { 'owner', 'first', 'last', 'bytes', 'newest_first', 'at_least_one' },
  run = function(keys, args)
    local reply = describe(keys, args.owner)
    if reply[1] ~= 'ok' then
      return reply
    end
    local total = tonumber(reply[6])
    local first, last = tonumber(args.first), tonumber(args.last)
    if first < 0 then first = math.max(total + first, 0) end
    if last < 0 then last = total + last end
    -- A client may skip more than there are, and a text of a large number has no digits of its end.
    first, last = math.min(first, total), math.min(last, total - 1)
    local backwards = args.newest_first == '1'
    local more = 'end'
    if last - first >= BATCH_MESSAGES then
      more = 'more'
      if backwards then first = last - BATCH_MESSAGES + 1 else last = first + BATCH_MESSAGES - 1 end
    end
    local path = first <= last
      and redis.call('GETRANGE', keys.path, first * ENTRY_BYTES, (last + 1) * ENTRY_BYTES - 1) or ''
    local from, to, direction = 1, #path / ENTRY_BYTES, 1
    if backwards then
      from, to, direction = to, 1, -1
    end
    local room, spent, numbers = tonumber(args.bytes), 0, {}
    for i = from, to, direction do
      local number, length = struct.unpack('>I4I4', path, (i - 1) * ENTRY_BYTES + 1)
      spent = spent + length
      if spent > room and (#numbers > 0 or args.at_least_one ~= '1') then
        more = 'end'
        break
      end
      if spent > BATCH_BYTES and #numbers > 0 then
        more = 'more'
        break
      end
      numbers[#numbers + 1] = number
    end
    local list = #numbers > 0 and redis.call('HMGET', keys.messages, unpack(numbers)) or {}
    reply[#reply + 1] = more
    local begin = backwards and last - #list + 1 or first
    reply[#reply + 1] = tostring(begin)
    local entries = {}
    for i = 1, #list do
      entries[i] = list[backwards and #list - i + 1 or i]
    end
    append_siblings(keys, reply, begin, entries)
    for i = 1, #entries do
      reply[#reply + 1] = entries[i]
    end
    return reply
  end,
}
