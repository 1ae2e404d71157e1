-- Removes a replica that is gone, unless its heartbeat has moved since.
--
-- Keys:       heartbeats
-- Arguments:  replica
--             counter   of the heartbeat as it was observed
-- Reply:      ok
-- Called by:  MembershipStore::remove_replica
register {
  name = 'remove_replica',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'heartbeats' },
  arguments = { 'replica', 'counter' },
  run = function(keys, args)
    if redis.call('HGET', keys.heartbeats, args.replica) == args.counter then
      redis.call('HDEL', keys.heartbeats, args.replica)
    end
    return 'ok'
  end,
}
