-- Records the bytes of a session at the end of a turn, in place of what is reserved for its payer,
-- and names sessions to remove where all anonymous sessions together take too much.
--
-- Keys:       budget
-- Arguments:  session
--             payer         of the session; an anonymous session that is recorded stays with the
--                           network that paid first. Empty where only a session that is recorded is
--                           to be recorded again
--             bytes         that the session takes
--             seconds       until the session expires; -1: never
--             total_limit   bytes of all anonymous sessions
--             young         seconds by which a session without an answer goes before the others of
--                           its network
-- Reply:      the sessions to remove
--             the sessions to look for, which were listed long ago and never recorded
-- Called by:  Budget::record
-- A session that expires so soon after the end of its turn has no answer.
local UNANSWERED_SECONDS = 600

register {
  name = 'budget_record',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'bytes', 'seconds', 'total_limit', 'young' },
  run = function(keys, args)
    local base, session, now = keys.budget, args.session, now_seconds()
    local unrecorded = forget_expired(base, now)
    release(base, session, args.payer)
    local before, payer = recorded(base, session)
    if args.payer == '' and (not before or not is_anonymous(payer)) then
      -- A user that began to claim the session did not get it.
      forget(base, session)
      return { {}, unrecorded }
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
    redis.call('HSET', base .. ':sessions', session, args.bytes .. ' ' .. payer)
    redis.call('ZADD', base .. ':payer:' .. payer, score_of(used), session)
    if tonumber(args.seconds) < 0 then
      redis.call('ZREM', base .. ':expiry', session)
    else
      redis.call('ZADD', base .. ':expiry', score_of(now + args.seconds), session)
    end
    add_bytes(base, payer, tonumber(args.bytes) - (before or 0))
    return { sessions_to_remove(base, args.total_limit, session), unrecorded }
  end,
}
