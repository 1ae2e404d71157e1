-- Finds a message, by its id or by the generation that made it, on whichever branch it is.
--
-- Keys:       session, messages, path, branches, index
-- Arguments:  owner
--             id           of a message, or of the generation that made an answer
--             of_generation   1 where it is a generation's: the index has it, if the answer is there
-- Reply:      ok <position on the path, 0 the oldest, or -> <id of its parent, or ->
--             <ids of the children of its parent where that has several, or empty>
--             <the message as it is stored>
--             none     the session has no such message
--             absent   the owner has no such session
-- Called by:  Store::find_message
register {
  name = 'message',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path', 'branches', 'index' },
  arguments = { 'owner', 'id', 'of_generation' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return { 'absent' }
    end
    local number = number_of(keys, args.id)
      or args.of_generation ~= '1' and unindexed_number_of(keys, args.id)
    local entry = number and redis.call('HGET', keys.messages, number)
    if not entry then
      return { 'none' }
    end
    local parent = tonumber(string.match(entry, '^%d+'))
    local _, parent_id = kin_of(keys, parent)
    local siblings = children_of(keys, parent)
    return { 'ok', tostring(position_of(keys, number) or '-'), parent_id or '-',
      count_ids(siblings) > 1 and siblings or '', entry }
  end,
}
