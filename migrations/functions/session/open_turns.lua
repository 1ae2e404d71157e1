-- Returns the unfinished turns of one bucket.
--
-- Keys:       open
-- Arguments:  none
-- Reply:      '<session> <generation>' → '<replica> <fence>'
-- Called by:  Store::open_turns
register {
  name = 'open_turns',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'open' },
  arguments = {},
  run = function(keys)
    return redis.call('HGETALL', keys.open)
  end,
}
