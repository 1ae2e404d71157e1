-- Records the bytes of a session at the end of a turn, and names sessions to remove where all
-- anonymous sessions together take too much.
--
-- Keys:       budget
-- Arguments:  session
--             payer         of the session; an anonymous session that is recorded stays with the
--                           network that paid first. Empty where only a session that is recorded is
--                           to be recorded again
--             bytes         that the session takes
--             seconds       until the session expires; -1: never
--             total_limit   bytes of all anonymous sessions
--             young         seconds after its last turn in which no session is removed
-- Reply:      the sessions to remove
-- Called by:  Budget::record
register {
  name = 'budget_record',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'bytes', 'seconds', 'total_limit', 'young' },
  run = function(keys, args)
    local base, session, now = keys.budget, args.session, now_seconds()
    forget_expired(base, now)
    local before, payer = recorded(base, session)
    if not before and args.payer == '' then
      return {}
    end
    if before and args.payer ~= '' and is_anonymous(payer) ~= is_anonymous(args.payer) then
      -- The session has become a user's, or was deleted and begun again.
      forget(base, session)
      before = nil
    end
    payer = before and payer or args.payer
    redis.call('HSET', base .. ':sessions', session, args.bytes .. ' ' .. payer)
    redis.call('ZADD', base .. ':payer:' .. payer, score_of(now), session)
    if tonumber(args.seconds) < 0 then
      redis.call('ZREM', base .. ':expiry', session)
    else
      redis.call('ZADD', base .. ':expiry', score_of(now + args.seconds), session)
    end
    add_bytes(base, payer, tonumber(args.bytes) - (before or 0))
    return sessions_to_remove(base, now, args.total_limit, args.young)
  end,
}
