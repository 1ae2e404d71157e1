-- Records the bytes of a session at the end of a turn, instead of what is reserved for its payer,
-- and names sessions to remove where all anonymous sessions together take too much.
--
-- Keys:       budget
-- Arguments:  session
--             payer         of the session; an anonymous session that is recorded stays with the
--                           network that paid first. Empty where only a session that is recorded is
--                           to be recorded again
--             bytes         that the session takes
--             seconds       until the session expires; -1: never
--             in_use        listened, or turn: the session was to be removed, and a client listens, or
--                           a turn runs or waits; it goes after the others of its network. Else empty
--             total_limit   bytes of all anonymous sessions; 0 to name none to remove
--             young         seconds by which a session without an answer goes before the others of
--                           its network
-- Reply:      the sessions to remove
--             those of them that may go although a client listens
--             the sessions to look for, which were listed long ago and never recorded
-- Called by:  Budget::record

-- A session that expires so soon after the end of its turn has no answer.
local UNANSWERED_SECONDS = 600

register {
  name = 'budget_record',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'bytes', 'seconds', 'in_use', 'total_limit', 'young' },
  run = function(keys, args)
    local base, session, now = keys.budget, args.session, now_seconds()
    local unrecorded, left = forget_expired(base, now)
    release_all(base, session, args.payer)
    settle(base, session)
    local before, payer = recorded(base, session)
    if args.payer == '' and (not before or not is_anonymous(payer)) then
      -- A user that began to claim the session did not get it.
      forget(base, session)
      return { left, {}, unrecorded }
    end
    if before and args.payer ~= '' and is_anonymous(payer) ~= is_anonymous(args.payer) then
      -- The session has become a user's, or was deleted and begun again.
      forget(base, session)
      before = nil
    end
    payer = before and payer or args.payer
    -- An anonymous session without an answer may go at once and before those that have one, so that
    -- requests that are refused never take the room of those that are answered. One that was in use
    -- when it should go is recorded without a payer, and does not stand before the others.
    local used, seconds = now, tonumber(args.seconds)
    if is_anonymous(args.payer) and seconds >= 0 and seconds <= UNANSWERED_SECONDS then
      used = now - tonumber(args.young)
    end
    if is_anonymous(payer) then
      used = IN_USE_SECONDS[args.in_use] and now + IN_USE_SECONDS[args.in_use] or used
    end
    redis.call('HSET', sessions_key(base), session, args.bytes .. ' ' .. payer)
    add_session(base, payer, session, used)
    if tonumber(args.seconds) < 0 then
      redis.call('ZREM', expiry_key(base), session)
    else
      redis.call('ZADD', expiry_key(base), score_of(now + args.seconds), session)
    end
    add_bytes(base, payer, tonumber(args.bytes) - (before or 0))
    local remove, although_listened = sessions_to_remove(base, args.total_limit, session, now, left)
    return { remove, although_listened, unrecorded }
  end,
}
