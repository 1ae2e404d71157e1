-- Describes a session as a conversation that clients may add turns to.
--
-- Keys:       session, messages
-- Arguments:  owner
-- Reply:      ok <created> <metadata as JSON, or empty>
--             absent   the owner has no such session, or its first turn brought its own conversation
-- Called by:  Store::conversation
register {
  name = 'conversation',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages' },
  arguments = { 'owner' },
  run = function(keys, args)
    local fields = owned(keys, args.owner, 'created', 'own_messages')
    if not fields or fields[2] then
      return { 'absent' }
    end
    return { 'ok', fields[1], redis.call('HGET', keys.messages, 'metadata') or '' }
  end,
}
