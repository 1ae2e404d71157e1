-- Empties the session's history and cancels its turns; deletes the session, too, where that is asked
-- for. Of a deleted session, the log without what was said stays for a while.
--
-- Keys:       those of the session
-- Arguments:  owner
--             delete                1 or 0
--             tag, event            of the cleared event
--             cancel_event          of each turn that is cancelled with it
--             now
--             tombstone_seconds     how long the log of a deleted session stays
--             new_epoch             random part of the session's epoch from now on
--             again                 where it is done again after a failover: the epoch's time and the
--                                   cancelled generations, as the first reply had them; else empty
--             cancel_tags           a tag for each turn that may be cancelled with it
-- Reply:      <messages that there were, or -1 where there is nothing to clear>
--             <time of the new epoch> and each generation that was cancelled
-- Called by:  Store::clear

-- Takes what was said out of the events that were published before the last clear. The message is
-- the last field of the event, and in a JSON string no quotation mark stands alone.
local function redact_accepted(keys)
  local list, cleared = redis.call('LRANGE', keys.events, 0, -1), false
  for i = #list, 1, -1 do
    local entry = list[i]
    local header, at = line(entry, 1)
    local kind = words(header)[5]
    cleared = cleared or kind == 'cleared'
    if cleared and kind == 'accepted' then
      local _, before = string.find(entry, '"message":"', at, true)
      local redacted = string.sub(entry, 1, before) .. '"}}'
      redis.call('LSET', keys.events, i - 1, redacted)
      redis.call('HINCRBY', keys.session, 'event_bytes', #redacted - #entry)
    end
  end
end

-- The epoch that begins now.
local function next_epoch(current, random)
  local now = redis.call('TIME')
  local microseconds = now[1] * 1000000 + now[2]
  return string.format('%.0f-%s', math.max(microseconds, epoch_time(current) + 1), random)
end

-- Where a failover took the whole session, too, or left it deleted: until a turn begins it anew, its
-- epoch says that what was cleared may not come back. Whether it is so.
local function is_left_empty(keys, args, epoch)
  local fields = session_fields(keys, 'owner', 'deleted', 'epoch')
  if not fields[1] then
    redis.call('HSET', keys.session, 'owner', args.owner, 'deleted', 1, 'epoch', epoch, 'events', 0,
      'tag', '0', 'event_bytes', 0)
    redis.call('EXPIRE', keys.session, args.tombstone_seconds)
    return true
  end
  if fields[1] == args.owner and fields[2] and epoch_time(fields[3]) < epoch_time(epoch) then
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
  arguments = { 'owner', 'delete', 'tag', 'event', 'cancel_event', 'now', 'tombstone_seconds',
    'new_epoch', 'again' },
  rest = 'cancel_tags',
  run = function(keys, args)
    local again = words(args.again)
    local epoch = again[1] and again[1] .. '-' .. args.new_epoch
    -- What it cancelled may not come back from a holder that has not heard of it.
    for i = 2, #again do
      if redis.call('HEXISTS', keys.open, open_field(keys, again[i])) == 0 then
        redis.call('SET', ended_key(keys, again[i]), 'clear', 'NX', 'EX', ENDED_SECONDS)
      end
    end
    if epoch and is_left_empty(keys, args, epoch) then
      return { '-1' }
    end
    local fields = owned(keys, args.owner, 'generation', 'epoch')
    if not fields then
      return { '-1' }
    end
    if string.match(fields[2], '%-(.*)') == args.new_epoch then
      -- A repeat after a lost reply.
      return { '0', string.match(fields[2], '^%d+') }
    end
    if epoch and epoch_time(fields[2]) > epoch_time(epoch) then
      -- A later clear was faster.
      if args.delete == '1' then
        redact_accepted(keys)
      end
      return { '-1' }
    end
    epoch = epoch or next_epoch(fields[2], args.new_epoch)
    local reply = { tostring(redis.call('LLEN', keys.path)), string.match(epoch, '^%d+') }
    if fields[1] then
      push_event(keys, args.cancel_tags[1], 'cancelled', fields[1], args.cancel_event)
      forget_running(keys)
      release(keys, fields[1], 'clear')
      reply[#reply + 1] = fields[1]
    end
    for place, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
      local generation = words(line(entry, 1))[1]
      release(keys, generation, 'clear')
      reply[#reply + 1] = generation
      push_event(keys, args.cancel_tags[1 + place], 'cancelled', generation, args.cancel_event)
    end
    push_event(keys, args.tag, 'cleared', '-', args.event)
    redis.call('UNLINK', keys.messages, keys.path, keys.index, keys.waiting, keys.answer)
    redis.call('HSET', keys.session, 'bytes', 0, 'updated', args.now, 'epoch', epoch)
    if args.delete == '1' then
      redact_accepted(keys)
      redis.call('HSET', keys.session, 'deleted', 1)
      redis.call('EXPIRE', keys.session, args.tombstone_seconds)
      redis.call('EXPIRE', keys.events, args.tombstone_seconds)
    else
      keep(keys)
    end
    return reply
  end,
}
