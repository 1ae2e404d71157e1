-- Describes the session without its messages. Returns also whether a generation waits or runs in
-- it.
--
-- Keys:       session, messages, path, open
-- Arguments:  owner
--             generation   or - for none
-- Reply:      absent
--             ok <title> <model> <created> <updated> <messages> <running|-> <closed|-> <epoch>
--             <p where it is pinned, a where it is archived, or both, or empty>
--             <1 if the generation waits or runs> <number of messages that its first turn brought, or ->
-- Called by:  Store::describe, Store::is_open
register {
  name = 'describe',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path', 'open' },
  arguments = { 'owner', 'generation' },
  run = function(keys, args)
    local reply = describe(keys, args.owner)
    if reply[1] == 'ok' then
      reply[#reply + 1] = tostring(redis.call('HEXISTS', keys.open,
        open_field(keys, args.generation)))
      reply[#reply + 1] = redis.call('HGET', keys.session, 'own_messages') or '-'
    end
    return reply
  end,
}
