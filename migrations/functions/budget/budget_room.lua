-- Returns whether a payer may store a turn in a session.
--
-- Keys:       budget
-- Arguments:  session, payer
--             sessions_limit, bytes_limit   of one payer
--             total_limit                   bytes of all anonymous sessions, which is exceeded by a
--                                           tenth only where no session can be removed yet
-- Reply:      ok
--             sessions   the payer has as many sessions as it may, and this is another one
--             bytes      the payer's sessions take as much as they may
--             total      all anonymous sessions take as much as they may
-- Called by:  Budget::room
register {
  name = 'budget_room',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'sessions_limit', 'bytes_limit', 'total_limit' },
  run = function(keys, args)
    local base, now = keys.budget, now_seconds()
    local before, _, payer = recorded(base, args.session)
    payer = payer or args.payer
    local sessions = redis.call('ZCOUNT', base .. ':payer:' .. payer, '(' .. now, '+inf')
    if not before and sessions >= tonumber(args.sessions_limit) then
      return 'sessions'
    end
    local bytes = tonumber(redis.call('ZSCORE', payers_of(base, payer), payer) or '0')
    if bytes >= tonumber(args.bytes_limit) then
      return 'bytes'
    end
    if payers_of(base, payer) == base .. ':anonymous'
      and tonumber(redis.call('GET', base .. ':total') or '0') >= args.total_limit * 1.1 then
      return 'total'
    end
    return 'ok'
  end,
}
