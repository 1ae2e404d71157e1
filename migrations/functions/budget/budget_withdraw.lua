-- Takes back what budget_room did for a session that the payer did not get: ends the reservation, and
-- removes the session from the list. Bytes and entries that another call reserved or listed since stay.
--
-- Keys:       budget
-- Arguments:  session, payer
--             listed    when the session was listed, as budget_room replied; empty where it was before
--             purpose   as in the call of budget_room
--             token     of the reservation, as budget_room replied; empty where nothing was reserved
-- Reply:      1
-- Called by:  Budget::withdraw
register {
  name = 'budget_withdraw',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'listed', 'purpose', 'token' },
  run = function(keys, args)
    local base, session = keys.budget, args.session
    local reservation = reservation_of(session, args.purpose, args.payer)
    local _, token = reserved(base, reservation)
    if token == args.token then
      release(base, reservation)
    end
    local sessions = payer_key(base, args.payer)
    local score = redis.call('ZSCORE', sessions, session)
    if score and tonumber(score) == tonumber(args.listed) then
      local bytes, payer = recorded(base, session)
      if payer == args.payer and bytes == 0 then
        forget(base, session)
      elseif payer ~= args.payer then
        redis.call('ZREM', sessions, session)
      end
    end
    return 1
  end,
}
