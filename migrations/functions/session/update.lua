-- Sets the title of the session, whether it is pinned and archived, and its metadata. A title of the model
-- replaces the first question only, and is no change of the user's.
--
-- Keys:       session, messages
-- Arguments:  owner
--             title              or empty: it stays
--             by                 user, or model
--             pinned, archived   1 or 0, or empty: it stays
--             metadata           as JSON, or empty: it stays
--             now                of the first call
--             epoch              in a repeat after a failover, the epoch of the session, as the first reply
--                                had it: what was changed later, or in another epoch, stays; else empty
-- Reply:      ok <epoch> | absent
-- Called by:  Store::update, Store::entitle

-- Sets a field in one of the hashes of the session, or removes it where the value is nil, unless it was changed
-- later.
local function change(keys, args, hash, field, value)
  local changed = field .. '_at'
  if args.epoch ~= '' and (redis.call('HGET', keys.session, changed) or '') > args.now then
    return
  end
  if value then
    redis.call('HSET', hash, field, value)
  else
    redis.call('HDEL', hash, field)
  end
  redis.call('HSET', keys.session, changed, args.now)
end

register {
  name = 'update',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'title', 'by', 'pinned', 'archived', 'metadata', 'now', 'epoch' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return { 'absent' }
    end
    local epoch = redis.call('HGET', keys.session, 'epoch')
    if args.epoch ~= '' and args.epoch ~= epoch then
      return { 'ok', epoch }
    end
    if args.by == 'model' then
      if redis.call('HSETNX', keys.session, 'titled', 1) == 1 then
        redis.call('HSET', keys.messages, 'title', args.title)
      end
    elseif args.title ~= '' then
      change(keys, args, keys.messages, 'title', args.title)
      redis.call('HSET', keys.session, 'titled', 1)
      if args.epoch == '' then
        redis.call('HSET', keys.session, 'updated', args.now)
      end
    end
    if args.metadata ~= '' then
      local before = redis.call('HSTRLEN', keys.messages, 'metadata')
      change(keys, args, keys.messages, 'metadata', args.metadata)
      local after = redis.call('HSTRLEN', keys.messages, 'metadata')
      redis.call('HINCRBY', keys.session, 'bytes', after - before)
    end
    for _, flag in ipairs({ 'pinned', 'archived' }) do
      if args[flag] ~= '' then
        change(keys, args, keys.session, flag, args[flag] == '1' and 1 or nil)
      end
    end
    return { 'ok', epoch }
  end,
}
