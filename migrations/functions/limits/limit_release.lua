-- Ends the holds of some sockets of one caller.
--
-- Keys:       caller
-- Arguments:  sockets   at least one, at most 500
-- Reply:      1
-- Called by:  LimitStore::release
register {
  name = 'limit_release',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'caller' },
  arguments = {},
  rest = 'sockets',
  run = function(keys, args)
    redis.call('ZREM', sockets_key(keys.caller), unpack(args.sockets))
    return 1
  end,
}
