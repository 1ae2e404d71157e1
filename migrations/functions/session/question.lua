-- Returns the question of a generation, also of one that waits, unless its request was hidden.
--
-- Keys:       session, messages, index
-- Arguments:  owner
--             generation
-- Reply:      stored <the message as it is stored>
--             waits <json header>\n<content>
--             none     the session has no such question, or its request was hidden
--             absent   the owner has no such session
-- Called by:  Store::question
register {
  name = 'question',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'index' },
  arguments = { 'owner', 'generation' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return { 'absent' }
    end
    if redis.call('HEXISTS', keys.messages, hidden_field(args.generation)) == 1 then
      return { 'none' }
    end
    local number = number_of(keys, question_of(args.generation))
    local stored = number and redis.call('HGET', keys.messages, number)
    if stored then
      return { 'stored', stored }
    end
    local waiting = redis.call('HGET', keys.messages, args.generation)
    return waiting and { 'waits', waiting } or { 'none' }
  end,
}
