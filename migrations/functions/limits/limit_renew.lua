-- Renews the holds of some open sockets of one caller, and brings back those that Redis lost.
--
-- Keys:       caller
-- Arguments:  seconds   until the holds end
--             sockets   at least one, at most 500
-- Reply:      1
-- Called by:  LimitStore::renew
register {
  name = 'limit_renew',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'caller' },
  arguments = { 'seconds' },
  rest = 'sockets',
  run = function(keys, args)
    hold_sockets(sockets_key(keys.caller), args.sockets, now_us(), tonumber(args.seconds))
    return 1
  end,
}
