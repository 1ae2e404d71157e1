-- Sets the title of the session, and whether it is pinned and archived.
--
-- Keys:       session, messages
-- Arguments:  owner
--             title              or empty: it stays
--             pinned, archived   1 or 0, or empty: it stays
--             now
-- Reply:      ok | absent
-- Called by:  Store::update
register {
  name = 'update',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'title', 'pinned', 'archived', 'now' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return 'absent'
    end
    if args.title ~= '' then
      redis.call('HSET', keys.messages, 'title', args.title)
      redis.call('HSET', keys.session, 'updated', args.now)
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
