-- Removes a session from the index: it was deleted, or it is gone.
--
-- Keys:       budget
-- Arguments:  session
-- Reply:      1
-- Called by:  Budget::forget
register {
  name = 'budget_forget',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'session' },
  run = function(keys, args)
    forget(keys.budget, args.session)
    return 1
  end,
}
