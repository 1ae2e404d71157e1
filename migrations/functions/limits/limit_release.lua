-- Ends the holds of some sockets of one caller.
--
-- Keys:       caller
-- Arguments:  sockets
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
    for _, socket in ipairs(args.sockets) do
      redis.call('ZREM', sockets_key(keys.caller), socket)
    end
    return 1
  end,
}
