-- Takes back what budget_room did for a session that the payer did not get: ends the reservation, and
-- removes the session from the list, unless it was listed again since.
--
-- Keys:       budget
-- Arguments:  session, payer
--             listed    when the session was listed, as budget_room replied; empty where it was before
-- Reply:      1
-- Called by:  Budget::withdraw
register {
  name = 'budget_withdraw',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session', 'payer', 'listed' },
  run = function(keys, args)
    local base, session = keys.budget, args.session
    release(base, session, args.payer)
    local sessions = base .. ':payer:' .. args.payer
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
