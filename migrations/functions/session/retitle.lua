-- Sets the title of the session.
--
-- Keys:       session, messages
-- Arguments:  owner, title, now
-- Reply:      ok | absent
-- Called by:  Store::retitle
register {
  name = 'retitle',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'title', 'now' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return 'absent'
    end
    redis.call('HSET', keys.messages, 'title', args.title)
    redis.call('HSET', keys.session, 'updated', args.now)
    return 'ok'
  end,
}
