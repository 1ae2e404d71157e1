-- Counts the replicas that are subscribed to a session's channel: they have a client that listens,
-- or a turn of the session.
--
-- Keys:       session
-- Arguments:  none
-- Reply:      their number; -1 where it is unknown
-- Called by:  Store::listeners
register {
  name = 'listeners',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session' },
  arguments = {},
  run = function(keys)
    local counted = redis.pcall('PUBSUB', 'SHARDNUMSUB', keys.session)
    if counted.err then
      return -1
    end
    return counted[2]
  end,
}
