-- Removes a session that is not in use, with all its keys.
--
-- Keys:       those of the session
-- Arguments:  owner   of the sessions that may be removed
-- Reply:      removed
--             gone      there is no such session
--             busy      a turn runs or waits
--             listened  a client listens
--             kept      the session is another owner's
-- Called by:  Store::evict
register {
  name = 'evict',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner' },
  run = function(keys, args)
    local fields = session_fields(keys, 'owner', 'generation', 'deleted')
    -- The log of a deleted session numbers the events of one that is begun next.
    if not fields[1] or fields[3] then
      return 'gone'
    end
    if fields[1] ~= args.owner then
      return 'kept'
    end
    if fields[2] or redis.call('EXISTS', keys.waiting) == 1 then
      return 'busy'
    end
    local listening = redis.pcall('PUBSUB', 'SHARDNUMSUB', keys.session)
    if not listening.err and listening[2] > 0 then
      return 'listened'
    end
    redis.call('UNLINK', keys.session, keys.messages, keys.path, keys.branches, keys.chains,
      keys.index, keys.waiting, keys.events, keys.answer, keys.images, keys.idempotency, keys.key_order)
    return 'removed'
  end,
}
