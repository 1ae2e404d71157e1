-- Returns the replica and the fence that hold an unfinished turn.
--
-- Keys:       session, open
-- Arguments:  generation
-- Reply:      '<replica> <fence>'; empty where the turn has ended, or a failover lost it
-- Called by:  Store::open_turn
register {
  name = 'open_turn',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'open' },
  arguments = { 'generation' },
  run = function(keys, args)
    return redis.call('HGET', keys.open, open_field(keys, args.generation)) or ''
  end,
}
