-- Returns whether a payer may store more in a session, and lists the session where it may and the
-- payer is a user. Returns also sessions to remove where all anonymous sessions together take too
-- much.
--
-- Keys:       budget
-- Arguments:  session, payer
--             bytes                         beyond what is recorded, that are about to be stored
--             sessions_limit, bytes_limit   of one payer; 0 for none
--             total_limit                   bytes of all anonymous sessions
-- Reply:      ok, or sessions: the payer has as many sessions as it may, and this is another one; or
--             bytes: the payer's sessions take as much as they may; or total: all anonymous sessions
--             take as much as they may
--             and the sessions to remove
-- Called by:  Budget::room
register {
  name = 'budget_room',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'bytes', 'sessions_limit', 'bytes_limit', 'total_limit' },
  run = function(keys, args)
    local base, now = keys.budget, now_seconds()
    forget_expired(base, now)
    local before, payer = recorded(base, args.session)
    -- The budget of another user must not show that its session exists.
    local is_theirs = before
      and (payer == args.payer or is_anonymous(payer) and is_anonymous(args.payer))
    if not is_theirs then
      before, payer = nil, args.payer
    end
    local verdict = 'ok'
    local sessions_limit, bytes_limit = tonumber(args.sessions_limit), tonumber(args.bytes_limit)
    if not before and sessions_limit > 0
      and redis.call('ZCARD', base .. ':payer:' .. payer) >= sessions_limit then
      verdict = 'sessions'
    elseif bytes_limit > 0
      and tonumber(redis.call('ZSCORE', payers_of(base, payer), payer) or '0') + args.bytes
        >= bytes_limit then
      verdict = 'bytes'
    elseif is_anonymous(payer) and bytes_over(base, args.total_limit, REFUSE_SHARE) >= 0 then
      verdict = 'total'
    end
    if verdict == 'ok' and not is_anonymous(args.payer) then
      list(base, args.payer, args.session, now)
    end
    return { verdict, unpack(sessions_to_remove(base, args.total_limit)) }
  end,
}
