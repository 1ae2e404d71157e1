-- Makes a session whose messages are all imported one of its owner's. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             count                          of the messages
--             title, model, created, now     of the session
--             pinned, archived               1, or empty
-- Reply:      ok
--             incomplete <number of messages>   a failover lost the others
--             absent   no session of this owner is being imported
-- Called by:  Store::import_commit
register {
  name = 'import_commit',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'count', 'title', 'model', 'created', 'now', 'pinned', 'archived' },
  run = function(keys, args)
    local fields = session_fields(keys, 'owner', 'deleted', 'importing')
    if fields[1] ~= args.owner then
      return { fields[1] and 'absent' or 'incomplete', '0' }
    end
    if not fields[2] then
      return { 'ok' }
    end
    local count = fields[3] and path_length(keys) or 0
    if count ~= tonumber(args.count) then
      return { 'incomplete', tostring(count) }
    end
    redis.call('HDEL', keys.session, 'deleted', 'importing', 'own_messages', 'unindexed',
      'unanswered')
    redis.call('HSET', keys.messages, 'title', args.title)
    redis.call('HSET', keys.session, 'model', args.model, 'created', args.created,
      'updated', args.now, 'titled', 1, 'idle_seconds', 0, 'began', string.format('%.0f', now_us()))
    for _, flag in ipairs({ 'pinned', 'archived' }) do
      if args[flag] ~= '' then
        redis.call('HSET', keys.session, flag, 1)
      end
    end
    for _, name in ipairs(EXPIRING_KEYS) do
      redis.call('PERSIST', keys[name])
    end
    return { 'ok' }
  end,
}
