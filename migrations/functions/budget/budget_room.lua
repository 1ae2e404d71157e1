-- Returns whether a payer may store more in a session. Where it may and is a user, the session is
-- listed, and the bytes of an import or a claim are reserved. Returns also sessions to remove where
-- all anonymous sessions together take too much.
--
-- Keys:       budget
-- Arguments:  session, payer
--             bytes                         beyond what is recorded, that are about to be stored
--             purpose                       turn, import, or claim: of a claim, what an anonymous
--                                           payer has recorded is about to be the payer's
--             reserve_seconds               until the reservation of the bytes ends; 0 for none
--             sessions_limit, bytes_limit   of one payer; 0 for none. Each wider network around an
--                                           anonymous payer may have twice as much as the last one
--             total_limit                   bytes of all anonymous sessions
-- Reply:      ok, or sessions: the payer, or a network around it, has as many sessions as it may, and this
--             is another one; or bytes: its sessions take as much as they may; or total: all anonymous
--             sessions take as much as they may
--             when the session was listed, where it was not before; else empty
--             the token of the reservation, where bytes were reserved; else empty
--             the sessions to remove
--             those of them that may go although a client listens
--             the sessions to look for, which were listed long ago and never recorded
-- Called by:  Budget::room_for

-- Whether a payer, or a network around it, has as many bytes as it may with these.
local function has_too_much(base, payer, more, limit)
  local counts = counts_of(base, payer)
  for i = #counts, 1, -1 do
    if counted(counts[i]) + more >= limit then
      return true
    end
    limit = 2 * limit
  end
  return false
end

-- Whether a payer, or a network around it, has as many sessions as it may.
local function has_too_many(base, payer, limit)
  if redis.call('ZCARD', payer_key(base, payer)) >= limit then
    return true
  end
  local networks = networks_of(payer)
  for i = #networks - 1, 1, -1 do
    limit = 2 * limit
    if tonumber(redis.call('HGET', session_counts_key(base), networks[i]) or 0) >= limit then
      return true
    end
  end
  return false
end

register {
  name = 'budget_room',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'bytes', 'purpose', 'reserve_seconds', 'sessions_limit',
    'bytes_limit', 'total_limit' },
  run = function(keys, args)
    local base, now = keys.budget, now_seconds()
    local unrecorded, left = forget_expired(base, now)
    local before, payer = recorded(base, args.session)
    local bytes = tonumber(args.bytes)
    if args.purpose == 'claim' and before and is_anonymous(payer) then
      bytes = before
    end
    -- The budget of another user must not show that its session exists.
    local is_theirs = before
      and (payer == args.payer or is_anonymous(payer) and is_anonymous(args.payer))
    if not is_theirs then
      before, payer = nil, args.payer
    end
    local is_new = not before and not redis.call('ZSCORE', payer_key(base, payer), args.session)
    local more = bytes - reserved(base, reservation_of(args.session, args.purpose, payer))
    local verdict, listed, token = 'ok', '', ''
    local sessions_limit, bytes_limit = tonumber(args.sessions_limit), tonumber(args.bytes_limit)
    if is_new and sessions_limit > 0 and has_too_many(base, payer, sessions_limit) then
      verdict = 'sessions'
    elseif bytes_limit > 0 and has_too_much(base, payer, more, bytes_limit) then
      verdict = 'bytes'
    elseif is_anonymous(payer) and is_total_used(base, args.total_limit, payer) then
      verdict = 'total'
    end
    if verdict == 'ok' and not is_anonymous(args.payer) then
      list(base, args.payer, args.session, now)
      listed = is_new and score_of(now) or ''
      if tonumber(args.reserve_seconds) > 0 then
        token = score_of(now)
        reserve(base, reservation_of(args.session, args.purpose, args.payer), bytes, token,
          now + args.reserve_seconds)
      end
    end
    local remove, although_listened = sessions_to_remove(base, args.total_limit, args.session, now,
      left)
    return { verdict, listed, token, remove, although_listened, unrecorded }
  end,
}
