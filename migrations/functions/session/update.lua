-- Sets the title of the session, whether it is pinned and archived, and its metadata. A title of the model is
-- set in place of the first question's only, and is no change of the user's.
--
-- Keys:       session, messages
-- Arguments:  owner
--             title              or empty: it stays
--             by                 user, or model
--             pinned, archived   1 or 0, or empty: it stays
--             metadata           as JSON, or empty: it stays
--             now
-- Reply:      ok | absent
-- Called by:  Store::update
register {
  name = 'update',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'title', 'by', 'pinned', 'archived', 'metadata', 'now' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return 'absent'
    end
    if args.by == 'model' then
      if redis.call('HSETNX', keys.session, 'titled', 1) == 1 then
        redis.call('HSET', keys.messages, 'title', args.title)
      end
    elseif args.title ~= '' then
      redis.call('HSET', keys.messages, 'title', args.title)
      redis.call('HSET', keys.session, 'titled', 1, 'updated', args.now)
    end
    if args.metadata ~= '' then
      local before = redis.call('HSTRLEN', keys.messages, 'metadata')
      redis.call('HSET', keys.messages, 'metadata', args.metadata)
      redis.call('HINCRBY', keys.session, 'bytes', #args.metadata - before)
    end
    for _, mark in ipairs({ 'pinned', 'archived' }) do
      if args[mark] == '1' then
        redis.call('HSET', keys.session, mark, 1)
      elseif args[mark] == '0' then
        redis.call('HDEL', keys.session, mark)
      end
    end
    return 'ok'
  end,
}
