-- Adds messages to a session that is being imported. Until `import_commit`, it is a session that is
-- deleted: nobody finds it, and it expires. The identifier follows from the whole content, so a
-- repeat, or another import of the same content, adds only what is missing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             from       the number of messages before these
--             seconds    until the messages expire, if no call follows
--             entries    messages, each <json header>\n<content>; none to begin
-- Reply:      ok <number of messages>   where it is less than `from`, a failover lost the others
--             exists   the session was imported, and is there
--             absent   the session is another owner's
-- Called by:  Store::import_messages
register {
  name = 'import_messages',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'from', 'seconds' },
  rest = 'entries',
  run = function(keys, args)
    local fields = session_fields(keys, 'owner', 'deleted', 'importing', 'epoch')
    if fields[1] and fields[1] ~= args.owner then
      return { 'absent' }
    end
    if fields[1] and not fields[2] then
      return { 'exists' }
    end
    if not fields[3] then
      redis.call('UNLINK', keys.messages, keys.path, keys.branches, keys.chains, keys.index, keys.waiting,
        keys.answer, keys.images)
      redis.call('HSET', keys.session, 'owner', args.owner, 'deleted', 1, 'importing', 1,
        'epoch', fields[4] or FIRST_EPOCH, 'last_message', 0,
        'bytes', redis.call('HLEN', keys.idempotency) * KEY_BYTES)
      -- A reader of the session begins at the end of its log, before the first turn, too.
      for _, field in ipairs({ 'events', 'tag', 'event_bytes' }) do
        redis.call('HSETNX', keys.session, field, 0)
      end
      resume_log(keys)
    end
    local count = path_length(keys)
    -- Without the messages in between, none of these is added.
    local known = math.max(count - args.from, 0)
    if count >= tonumber(args.from) then
      for i = known + 1, #args.entries do
        push_whole_message(keys, args.entries[i])
        count = count + 1
      end
    end
    for _, name in ipairs({ 'session', 'messages', 'path', 'index', 'events' }) do
      redis.call('EXPIRE', keys[name], args.seconds)
    end
    return { 'ok', tostring(count) }
  end,
}
