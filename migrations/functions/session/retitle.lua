-- Sets the title of the session.
--
-- Keys:       session
-- Arguments:  owner, title, now
-- Reply:      ok | absent
-- Called by:  Store::retitle
register {
  name = 'retitle',
  version = 1,
  flags = {},
  keys = { 'session' },
  arguments = { 'owner', 'title', 'now' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return 'absent'
    end
    redis.call('HSET', keys.session, 'title', args.title, 'updated', args.now)
    return 'ok'
  end,
}
