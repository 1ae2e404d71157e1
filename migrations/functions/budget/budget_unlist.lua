-- Removes sessions from a user's list: there are no such sessions, or they are another owner's.
--
-- Keys:       budget
-- Arguments:  payer
--             seconds    an entry of the last so many seconds stays: its session may be created just
--                        now
--             sessions
-- Reply:      1
-- Called by:  Budget::unlist_gone
register {
  name = 'budget_unlist',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'payer', 'seconds' },
  rest = 'sessions',
  run = function(keys, args)
    local base, before = keys.budget, now_seconds() - args.seconds
    local key = payer_key(base, args.payer)
    for _, session in ipairs(args.sessions) do
      local score = redis.call('ZSCORE', key, session)
      if score and tonumber(score) <= before then
        local _, payer = recorded(base, session)
        if payer == args.payer then
          forget(base, session)
        else
          redis.call('ZREM', key, session)
        end
      end
    end
    return 1
  end,
}
