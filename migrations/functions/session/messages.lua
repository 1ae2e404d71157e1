-- Reads a batch of messages of the selected path, bounded in bytes. After the reply `more` the
-- caller continues with the rest of its range and bytes.
--
-- Keys:       session, messages, path
-- Arguments:  owner
--             first, last    positions on the path; negative ones count from the end
--             bytes          the largest size of the messages
--             newest_first   1: from the last message back; 0: from the first message on
--             at_least_one   1: the first message is returned even if it is larger than `bytes`
-- Reply:      absent
--             as describe up to the epoch, then <more|end> <position of the first message> and the
--             messages, oldest first, as they are stored
-- Called by:  Store::page, Store::newest, Store::page_before
register {
  name = 'messages',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path' },
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
    last = math.min(last, total - 1)
    local backwards = args.newest_first == '1'
    local more = 'end'
    if last - first >= BATCH_MESSAGES then
      more = 'more'
      if backwards then first = last - BATCH_MESSAGES + 1 else last = first + BATCH_MESSAGES - 1 end
    end
    local path = first <= last and redis.call('LRANGE', keys.path, first, last) or {}
    local from, to, direction = 1, #path, 1
    if backwards then
      from, to, direction = #path, 1, -1
    end
    local room, spent, numbers = tonumber(args.bytes), 0, {}
    for i = from, to, direction do
      local number, length = string.match(path[i], '^(%d+) (%d+)$')
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
    reply[#reply + 1] = tostring(backwards and last - #list + 1 or first)
    for i = 1, #list do
      reply[#reply + 1] = list[backwards and #list - i + 1 or i]
    end
    return reply
  end,
}
