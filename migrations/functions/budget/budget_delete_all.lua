-- Begins the deletion of all sessions that a user has now. Their list becomes that of the deletion:
-- a session that is created later is not in it, unless one of the same identifier was. A repeat changes
-- nothing.
--
-- Keys:       budget
-- Arguments:  payer
--             deletion        a random name
--             lease_seconds   after which another replica resumes it, if this one does not
-- Reply:      the number of sessions to delete
--             when the deletion began, in microseconds; a session that is created since stays
-- Called by:  Budget::delete_all
register {
  name = 'budget_delete_all',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'budget' },
  arguments = { 'payer', 'deletion', 'lease_seconds' },
  run = function(keys, args)
    local base = keys.budget
    local list, deleting = payer_key(base, args.payer), deleting_key(base, args.deletion)
    if redis.call('EXISTS', deleting) == 0 then
      if redis.call('EXISTS', list) == 0 then
        return { 0, '0' }
      end
      redis.call('RENAME', list, deleting)
      redis.call('HSET', deletion_owners_key(base), args.deletion,
        string.format('%.0f ', now_seconds() * 1000000) .. args.payer)
      redis.call('ZADD', deletions_key(base), score_of(now_seconds() + args.lease_seconds),
        args.deletion)
    end
    local began = deletion_owner(base, args.deletion)
    return { redis.call('ZCARD', deleting), began }
  end,
}
