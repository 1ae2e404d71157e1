-- Hides what a front shows again of the request of a turn. The messages stay. A repeat changes nothing.
--
-- Keys:       session, messages, index
-- Arguments:  owner
--             generation
-- Reply:      ok
--             none     the session has no question of this generation
--             absent   the owner has no such session
-- Called by:  Store::hide_request
register {
  name = 'hide_request',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'session', 'messages', 'index' },
  arguments = { 'owner', 'generation' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return 'absent'
    end
    if not number_of(keys, question_of(args.generation)) then
      return 'none'
    end
    if redis.call('HSET', keys.messages, hidden_field(args.generation), 1) == 1 then
      redis.call('HINCRBY', keys.session, 'bytes', HIDDEN_BYTES)
    end
    return 'ok'
  end,
}
