-- Records the bytes of a session at the end of a turn, and names sessions to remove where all
-- anonymous sessions together take too much: the ones that expire first of the payer that takes
-- most, without those of the last minutes.
--
-- Keys:       budget
-- Arguments:  session
--             payer         of a session that is not recorded yet
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
    local base, now = keys.budget, now_seconds()
    local before, _, payer = recorded(base, args.session)
    payer = payer or args.payer
    local seconds = tonumber(args.seconds)
    redis.call('HSET', base .. ':sessions', args.session, args.bytes .. ' ' .. now .. ' ' .. payer)
    redis.call('ZADD', base .. ':payer:' .. payer, seconds < 0 and '+inf' or now + seconds,
      args.session)
    add_bytes(base, payer, tonumber(args.bytes) - (before or 0))
    forget_expired(base, payer, now)
    local over = tonumber(redis.call('GET', base .. ':total') or '0') - tonumber(args.total_limit)
    if over <= 0 then
      return {}
    end
    local most = redis.call('ZRANGE', base .. ':anonymous', 0, 0, 'REV')[1]
    if not most then
      return {}
    end
    forget_expired(base, most, now)
    local remove = {}
    local oldest = redis.call('ZRANGE', base .. ':payer:' .. most, 0, SESSIONS_AT_ONCE - 1)
    for _, session in ipairs(oldest) do
      local taken, at = recorded(base, session)
      if over > 0 and at and now - at >= tonumber(args.young) then
        remove[#remove + 1] = session
        over = over - taken
      end
    end
    return remove
  end,
}
