-- Returns deletions of all sessions of a user that no replica has carried on for a while, and leaves
-- them to the caller.
--
-- Keys:       budget
-- Arguments:  lease_seconds   after which another replica resumes them, if this one does not
-- Reply:      of each deletion its name, when it began in microseconds, and its payer
-- Called by:  Budget::abandoned_deletions
register {
  name = 'budget_deletions',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'lease_seconds' },
  run = function(keys, args)
    local base, now, found = keys.budget, now_seconds(), {}
    local due = redis.call('ZRANGEBYSCORE', deletions_key(base), '-inf', score_of(now), 'LIMIT', 0,
      SESSIONS_AT_ONCE)
    for _, deletion in ipairs(due) do
      redis.call('ZADD', deletions_key(base), score_of(now + args.lease_seconds), deletion)
      local began, payer = deletion_owner(base, deletion)
      if payer then
        found[#found + 1] = deletion
        found[#found + 1] = began
        found[#found + 1] = payer
      else
        redis.call('ZREM', deletions_key(base), deletion)
      end
    end
    return found
  end,
}
