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
--             new_epoch             of the session from now on
--             epoch                 that is to be cleared, or - for any
--             cancel_tags           a tag for each turn that may be cancelled with it
-- Reply:      <messages that there were, or -1 where there is nothing to clear> <the epoch cleared>
-- Called by:  Store::clear

-- Takes what was said out of the events that were published. The message is the last field of the
-- event, and in a JSON string no quotation mark stands alone.
local function redact_accepted(keys)
  for i, entry in ipairs(redis.call('LRANGE', keys.events, 0, -1)) do
    local header, at = line(entry, 1)
    if words(header)[5] == 'accepted' then
      local _, before = string.find(entry, '"message":"', at, true)
      local redacted = string.sub(entry, 1, before) .. '"}}'
      redis.call('LSET', keys.events, i - 1, redacted)
      redis.call('HINCRBY', keys.session, 'event_bytes', #redacted - #entry)
    end
  end
end

register {
  name = 'clear',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'delete', 'tag', 'event', 'cancel_event', 'now', 'tombstone_seconds',
    'new_epoch', 'epoch' },
  rest = 'cancel_tags',
  run = function(keys, args)
    local fields = owned(keys, args.owner, 'generation', 'epoch')
    if not fields or (args.epoch ~= '-' and args.epoch ~= fields[2]) then
      return { '-1', '-' }
    end
    local count = redis.call('LLEN', keys.path)
    if fields[1] then
      push_event(keys, args.cancel_tags[1], 'cancelled', fields[1], args.cancel_event)
      forget_running(keys)
      release(keys, fields[1], 'clear')
    end
    for place, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
      local generation = words(line(entry, 1))[1]
      release(keys, generation, 'clear')
      push_event(keys, args.cancel_tags[1 + place], 'cancelled', generation, args.cancel_event)
    end
    push_event(keys, args.tag, 'cleared', '-', args.event)
    redis.call('UNLINK', keys.messages, keys.path, keys.index, keys.waiting, keys.answer)
    redis.call('HSET', keys.session, 'bytes', 0, 'updated', args.now, 'epoch', args.new_epoch)
    if args.delete == '1' then
      redact_accepted(keys)
      redis.call('HSET', keys.session, 'deleted', 1)
      redis.call('EXPIRE', keys.session, args.tombstone_seconds)
      redis.call('EXPIRE', keys.events, args.tombstone_seconds)
    else
      keep(keys)
    end
    return { tostring(count), fields[2] }
  end,
}
