-- Finds a message of the selected path, by its id or by the generation that made it.
--
-- Keys:       session, messages, path, index
-- Arguments:  owner
--             id   of a message, or of the generation that made an answer
-- Reply:      ok <position on the path, 0 the oldest> <the message as it is stored>
--             none     the path has no such message
--             absent   the owner has no such session
-- Called by:  Store::find_message
register {
  name = 'message',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path', 'index' },
  arguments = { 'owner', 'id' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return { 'absent' }
    end
    local number = redis.call('HGET', keys.index, args.id)
    local position = number and position_of(keys, tonumber(number))
    if not position then
      return { 'none' }
    end
    return { 'ok', tostring(position), redis.call('HGET', keys.messages, number) }
  end,
}
