-- Adds messages to a session outside of a turn, or begins a session with them. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             creates          1 where the session begins, else 0
--             title, model     of a session that begins
--             metadata         of such a session, as JSON, or empty
--             idle_seconds     such a session expires after this time without a turn; 0: never
--             unused_seconds   one that expires at all does so after this time, until a turn has an answer
--             now
--             bytes_limit      bound of bytes of messages
--             messages         each <json header>\n<content>
-- Reply:      ok
--             absent   the owner has no such session, or its first turn brought its own conversation
--             busy     a turn runs or waits, or the session is being imported
--             full     the session would hold more than bytes_limit bytes, or has MOST_MESSAGES
-- Called by:  Store::create_conversation, Store::add_messages

-- Begins a session without a turn.
local function begin_session(keys, args)
  -- The keys of a session that expires do not all expire in one moment.
  redis.call('UNLINK', keys.messages, keys.path, keys.branches, keys.chains, keys.index, keys.waiting,
    keys.events, keys.answer, keys.images, keys.idempotency, keys.key_order)
  redis.call('HSET', keys.session, 'owner', args.owner, 'model', args.model, 'created', args.now,
    'epoch', FIRST_EPOCH, 'idle_seconds', args.idle_seconds, 'last_message', 0, 'events', 0, 'tag', 0,
    'event_bytes', 0, 'bytes', #args.metadata, 'began', string.format('%.0f', now_us()))
  if args.idle_seconds ~= '0' then
    redis.call('HSET', keys.session, 'unanswered', args.unused_seconds)
  end
  redis.call('HSET', keys.messages, 'title', args.title, 'metadata', args.metadata)
end

register {
  name = 'add_messages',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'creates', 'title', 'model', 'metadata', 'idle_seconds', 'unused_seconds', 'now',
    'bytes_limit' },
  rest = 'messages',
  run = function(keys, args)
    local fields = session_fields(keys, 'owner', 'deleted', 'generation', 'importing', 'own_messages',
      'bytes')
    local exists = fields[1] == args.owner and not fields[2]
    local creates = args.creates == '1' and not fields[1]
    if not creates and (not exists or fields[5]) then
      return fields[4] and fields[1] == args.owner and 'busy' or 'absent'
    end
    if exists and (args.creates == '1' or number_of(keys, id_of(args.messages[1]))) then
      -- A repeat after a lost reply.
      return 'ok'
    end
    if exists and (fields[3] or redis.call('EXISTS', keys.waiting) == 1) then
      return 'busy'
    end
    local bytes = #args.metadata + tonumber(fields[6] or '0') + image_bytes(keys)
    for _, message in ipairs(args.messages) do
      bytes = bytes + #message + MESSAGE_BYTES
    end
    if bytes > tonumber(args.bytes_limit) or redis.call('HLEN', keys.index) >= MOST_MESSAGES then
      return 'full'
    end
    if creates then
      begin_session(keys, args)
    end
    for _, message in ipairs(args.messages) do
      push_whole_message(keys, message)
    end
    redis.call('HSET', keys.session, 'updated', args.now)
    if exists then
      keep(keys)
    elseif args.idle_seconds ~= '0' then
      local seconds = math.min(args.idle_seconds, args.unused_seconds)
      for _, name in ipairs(EXPIRING_KEYS) do
        redis.call('EXPIRE', keys[name], seconds)
      end
    end
    return 'ok'
  end,
}
