-- Renews a replica's heartbeat. While it moves, no other replica takes over its turns and slots.
--
-- Keys:       heartbeats   hash: replica → a counter that rises several times a lease, -1 once the
--                          replica has signed off
-- Arguments:  replica
-- Reply:      every replica and its counter
-- Called by:  MembershipStore::heartbeat
register {
  name = 'heartbeat',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'heartbeats' },
  arguments = { 'replica' },
  run = function(keys, args)
    redis.call('HINCRBY', keys.heartbeats, args.replica, 1)
    return redis.call('HGETALL', keys.heartbeats)
  end,
}
