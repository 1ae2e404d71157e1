-- Signs a replica off: others may take over its turns and slots at once.
--
-- Keys:       heartbeats
-- Arguments:  replica
-- Reply:      ok
-- Called by:  MembershipStore::sign_off
register {
  name = 'sign_off',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'heartbeats' },
  arguments = { 'replica' },
  run = function(keys, args)
    redis.call('HSET', keys.heartbeats, args.replica, -1)
    return 'ok'
  end,
}
