-- Sets the title of the session, whether it is pinned and archived, and its metadata. A title of the model
-- replaces the first question only, and is no change of the user's.
--
-- Keys:       session, messages
-- Arguments:  owner
--             title              or empty: it stays
--             by                 user, or model
--             pinned, archived   1 or 0, or empty: it stays
--             metadata           as JSON, or empty: it stays
--             now                of the first call, on the clock of its caller
--             epoch, at          in a repeat after a failover, as the first reply had them: what was changed
--                                later, or in another epoch, stays; else empty
-- Reply:      ok <epoch> <at: microseconds of the change on the clock of Redis> | absent
-- Called by:  Store::update

-- Returns when a field was changed last, in microseconds on the clock of Redis; 0 where no change of it is known.
-- Sessions of older releases have the time as a text, which no repeat compares itself with.
local function changed_at(keys, field)
  return tonumber(redis.call('HGET', keys.session, field .. '_at') or 0) or 0
end

-- Sets a field in one of the hashes of the session, or removes it where the value is nil, unless it was changed
-- later.
local function change(keys, args, at, hash, field, value)
  if args.epoch ~= '' and changed_at(keys, field) > tonumber(at) then
    return
  end
  if value then
    redis.call('HSET', hash, field, value)
  else
    redis.call('HDEL', hash, field)
  end
  redis.call('HSET', keys.session, field .. '_at', at)
end

-- Returns the time of a change that is later than all before it. The clocks of replicas differ, and a clock may
-- step back.
local function after_all_changes(keys)
  local at = now_us()
  for _, field in ipairs({ 'title', 'metadata', 'pinned', 'archived' }) do
    at = math.max(at, changed_at(keys, field) + 1)
  end
  return string.format('%.0f', at)
end

register {
  name = 'update',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'title', 'by', 'pinned', 'archived', 'metadata', 'now', 'epoch', 'at' },
  run = function(keys, args)
    if not owned(keys, args.owner) then
      return { 'absent' }
    end
    local epoch = redis.call('HGET', keys.session, 'epoch')
    if args.epoch ~= '' and args.epoch ~= epoch then
      return { 'ok', epoch, args.at }
    end
    local at = args.at ~= '' and args.at or after_all_changes(keys)
    if args.by == 'model' then
      if redis.call('HSETNX', keys.session, 'titled', 1) == 1 then
        redis.call('HSET', keys.messages, 'title', args.title)
      end
    elseif args.title ~= '' then
      change(keys, args, at, keys.messages, 'title', args.title)
      redis.call('HSET', keys.session, 'titled', 1)
      if args.epoch == '' then
        redis.call('HSET', keys.session, 'updated', args.now)
      end
    end
    if args.metadata ~= '' then
      local before = redis.call('HSTRLEN', keys.messages, 'metadata')
      change(keys, args, at, keys.messages, 'metadata', args.metadata)
      local after = redis.call('HSTRLEN', keys.messages, 'metadata')
      redis.call('HINCRBY', keys.session, 'bytes', after - before)
    end
    for _, flag in ipairs({ 'pinned', 'archived' }) do
      if args[flag] ~= '' then
        change(keys, args, at, keys.session, flag, args[flag] == '1' and 1 or nil)
      end
    end
    return { 'ok', epoch, at }
  end,
}
