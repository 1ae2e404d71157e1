-- Clears the session's history and cancels its turns, or deletes the session. The log stays, of a
-- deleted session for LOG_SECONDS; it has no text of its own.
--
-- Keys:       those of the session
-- Arguments:  owner
--             delete                1 to delete the session, too, else 0
--             if_idle               1 to leave a session alone in which a turn runs or waits, else 0
--             tag, event            of the cleared event
--             cancel_event          of each turn that is cancelled
--             now
--             tombstone_seconds     how long a deleted session is known to be deleted, and its idempotency
--                                   keys are kept
--             new_epoch             random part of the session's new epoch
--             again                 in a repeat after a failover, the epoch's time and the cancelled
--                                   generations of the first reply; else empty
--             deletion_began        where all sessions of the owner are deleted, when that began, in
--                                   microseconds: a session that is created since stays; else empty
--             transfer_tag          of the session's transfer to this owner, where there was one
--             cancel_tags           a tag for each turn that may be cancelled
-- Reply:      <number of messages before, or -1 where there is nothing to clear>
--             <time of the new epoch> and each generation that was cancelled
-- Called by:  Store::clear

-- How long the log of a deleted session is kept, for readers that are late: it counts for nobody.
local LOG_SECONDS = 300

-- Returns the epoch that begins now.
local function next_epoch(current, random)
  return string.format('%.0f-%s', math.max(now_us(), epoch_time(current) + 1), random)
end

-- Whether a failover lost the whole session, or left it deleted. Such a session gets the epoch of
-- the clear, which keeps the cleared turns from coming back.
local function is_left_empty(keys, args, epoch)
  local fields = session_fields(keys, 'owner', 'deleted', 'epoch', 'transferred')
  if not fields[1] then
    redis.call('HSET', keys.session, 'owner', args.owner, 'deleted', 1, 'epoch', epoch, 'events', 0,
      'tag', '0', 'event_bytes', 0)
    -- A session that was only cleared may be created again at any time: its turns are restored soon.
    redis.call('EXPIRE', keys.session, args.delete == '1' and args.tombstone_seconds or ENDED_SECONDS)
    return true
  end
  if was_written_by(fields[1], fields[4], args.owner) and fields[2]
    and epoch_time(fields[3]) < epoch_time(epoch) then
    redis.call('HSET', keys.session, 'epoch', epoch)
    return true
  end
  return false
end

register {
  name = 'clear',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'delete', 'if_idle', 'tag', 'event', 'cancel_event', 'now', 'tombstone_seconds',
    'new_epoch', 'again', 'deletion_began', 'transfer_tag' },
  rest = 'cancel_tags',
  run = function(keys, args)
    local again = words(args.again)
    local epoch = again[1] and again[1] .. '-' .. args.new_epoch
    -- The cancelled turns must not be restored by holders that do not know of the clear.
    for i = 2, #again do
      if redis.call('HEXISTS', keys.open, open_field(keys, again[i])) == 0 then
        redis.call('SET', ended_key(keys, again[i]), 'clear', 'NX', 'EX', ENDED_SECONDS)
      end
    end
    local of_owner = owned
    if epoch then
      transfer_again(keys, args.owner, args.transfer_tag)
      of_owner = owned_before
      if args.owner == ANONYMOUS then
        -- The session may be a user's since. The user may even have created it again, after a failover
        -- lost it and before the transfer is applied again: turns from after the clear wait for it.
        args.owner = redis.call('HGET', keys.session, 'owner') or ANONYMOUS
      end
    end
    if epoch and is_left_empty(keys, args, epoch) then
      return { '-1' }
    end
    local fields = of_owner(keys, args.owner, 'generation', 'epoch', 'began')
    if not fields then
      local deleted = session_fields(keys, 'owner', 'deleted', 'epoch')
      if not epoch and deleted[1] == args.owner and deleted[2]
        and string.match(deleted[3], '%-(.*)') == args.new_epoch then
        -- A repeat after a lost reply.
        return { '0', string.match(deleted[3], '^%d+') }
      end
      return { '-1' }
    end
    if string.match(fields[2], '%-(.*)') == args.new_epoch then
      -- A repeat after a lost reply.
      return { '0', string.match(fields[2], '^%d+') }
    end
    local deletion_began = tonumber(args.deletion_began)
    if not epoch and deletion_began
      and math.max(epoch_time(fields[2]), tonumber(fields[3] or '0')) > deletion_began then
      return { '-1' }
    end
    if epoch and epoch_time(fields[2]) > epoch_time(epoch) then
      -- A later clear was applied already.
      return { '-1' }
    end
    if epoch and tonumber(fields[3] or '0') > epoch_time(epoch) then
      -- The session that was cleared is gone, and this one was begun since. Turns from after the
      -- clear wait for its epoch.
      redis.call('HSET', keys.session, 'epoch', epoch)
      return { '-1' }
    end
    if args.if_idle == '1' and (fields[1] or redis.call('EXISTS', keys.waiting) == 1) then
      return { '-1' }
    end
    epoch = epoch or next_epoch(fields[2], args.new_epoch)
    local unindexed = tonumber(redis.call('HGET', keys.session, 'unindexed') or 0)
    local reply = { tostring(unindexed + redis.call('HLEN', keys.index)), string.match(epoch, '^%d+') }
    if fields[1] then
      push_event(keys, args.cancel_tags[1], 'cancelled', fields[1], args.cancel_event)
      forget_running(keys)
      release(keys, fields[1], 'clear')
      reply[#reply + 1] = fields[1]
    end
    for i, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
      local generation = words(entry)[1]
      release(keys, generation, 'clear')
      reply[#reply + 1] = generation
      -- After a failover there may be more turns than the caller has made tags for.
      push_event(keys, args.cancel_tags[math.min(1 + i, #args.cancel_tags)], 'cancelled', generation,
        args.cancel_event)
    end
    push_event(keys, args.tag, 'cleared', '-', args.event)
    local kept = redis.call('HMGET', keys.messages, 'title', 'metadata')
    redis.call('UNLINK', keys.messages, keys.path, keys.branches, keys.chains, keys.index, keys.waiting,
      keys.answer, keys.images)
    redis.call('HDEL', keys.session, 'unindexed')
    redis.call('HSET', keys.session, 'bytes', redis.call('HLEN', keys.idempotency) * KEY_BYTES,
      'updated', args.now, 'epoch', epoch)
    if args.delete == '1' then
      redis.call('HSET', keys.session, 'deleted', 1)
      redis.call('HDEL', keys.session, 'model', 'pinned', 'archived')
      redis.call('EXPIRE', keys.session, args.tombstone_seconds)
      redis.call('EXPIRE', keys.events, LOG_SECONDS)
      for _, name in ipairs({ 'idempotency', 'key_order' }) do
        redis.call('EXPIRE', keys[name], args.tombstone_seconds)
      end
    else
      redis.call('HSET', keys.messages, 'title', kept[1] or '')
      if kept[2] then
        redis.call('HSET', keys.messages, 'metadata', kept[2])
        redis.call('HINCRBY', keys.session, 'bytes', #kept[2])
      end
      keep(keys)
    end
    return reply
  end,
}
