-- Returns the next sessions of a deletion, after it has forgotten those that are deleted. The
-- deletion ends with its last session.
--
-- Keys:       budget
-- Arguments:  deletion
--             lease_seconds   after which another replica resumes it, if this one does not
--             limit           sessions to return, at most
--             deleted         sessions that are deleted
-- Reply:      of each of them: the session, and 1 where it was listed again since the deletion began,
--             else 0. None where the deletion has ended
-- Called by:  Budget::delete_next
register {
  name = 'budget_delete_next',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'deletion', 'lease_seconds', 'limit' },
  rest = 'deleted',
  run = function(keys, args)
    local base = keys.budget
    local deleting, deletions = deleting_key(base, args.deletion), deletions_key(base)
    local _, payer = deletion_owner(base, args.deletion)
    for _, session in ipairs(args.deleted) do
      local _, recorded_payer = recorded(base, session)
      -- One that is listed again was created again since, or the end of its turn recorded it, which
      -- looks at it once more.
      if payer and recorded_payer == payer
        and not redis.call('ZSCORE', payer_key(base, payer), session) then
        forget(base, session)
      end
      redis.call('ZREM', deleting, session)
    end
    local next_ones = redis.call('ZRANGE', deleting, 0, args.limit - 1)
    if #next_ones == 0 then
      redis.call('ZREM', deletions, args.deletion)
      redis.call('HDEL', deletion_owners_key(base), args.deletion)
    else
      redis.call('ZADD', deletions, score_of(now_seconds() + args.lease_seconds), args.deletion)
    end
    local reply, list = {}, payer_key(base, payer or '')
    for _, session in ipairs(next_ones) do
      reply[#reply + 1] = session
      reply[#reply + 1] = redis.call('ZSCORE', list, session) and '1' or '0'
    end
    return reply
  end,
}
