-- Accepts a user's message as a turn of the session, which is created where it does not exist. The
-- turn runs at once, or waits for the turns before it. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             generation, fence, replica   of the turn, and the replica that holds it
--             turn                         the request without its text, as JSON
--             header, content              of the question, without the number of its parent
--             tag, event                   of the accepted event
--             title                        of a session that begins with this turn
--             model, now                   the model and the time of this turn
--             idle_seconds                 the session expires after this time without a turn; 0: never.
--                                          One that brought its own conversation keeps what it has
--             waiting_limit, bytes_limit   bounds of waiting turns, and of bytes of messages
--             key, request_digest, key_seconds   the idempotency key or empty, the digest of the
--                                          request, and for how long the key is remembered
--             own_conversation             once where the turn brings the messages before it,
--                                          instead of a stored history; only into a new session. kept where
--                                          a client may read them again; detached where it also comes
--                                          back for the answer, be it one that failed. Else 0
--             anchor                       where the turn goes, if not to the end of the path
--                                          (`branches.lua`); else empty
--             pictured                     1 where one of these messages has an image, else 0
--             conversation                 these messages, each <number of those before it> <json header>
--                                          \n<content>, as they are stored in a new session
-- Reply:      began <events before> <tag before> <epoch> <1 where the turn created the session, else 0>
--                   <the message before the turn where it began in a session that has branched, else ->
--             waiting, as began
--             same <generation> <events before|-> <tag before|->   the turn was accepted before
--             other_body    the key was used for another request
--             absent        the session is another owner's
--             occupied      the turn brings a conversation, and the session exists
--             busy          the session has waiting_limit waiting turns, or is being imported
--             full          the session would hold more than bytes_limit bytes, or has MOST_MESSAGES, or
--                           as many branches as it may
--             images        an image that the turn names is not there: it is to be put again
--             message, role, running, siblings   why the turn does not go beside that message
-- Called by:  Store::accept, Store::find

-- Returns the bytes of what a turn stores.
local function bytes_of_turn(args)
  local bytes = #args.content + #args.header + #args.turn
  for _, entry in ipairs(args.conversation) do
    bytes = bytes + #entry + MESSAGE_BYTES
  end
  return bytes
end

register {
  name = 'accept',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence', 'replica', 'turn', 'header', 'content', 'tag', 'event',
    'title', 'model', 'now', 'idle_seconds', 'own_conversation', 'pictured', 'anchor', 'waiting_limit',
    'bytes_limit', 'key',
    'request_digest', 'key_seconds' },
  rest = 'conversation',
  run = function(keys, args)
    local generation = args.generation
    local fields = session_fields(keys, 'owner', 'deleted', 'generation', 'bytes', 'events', 'tag',
      'epoch', 'importing', 'own_messages', 'idle_seconds')
    local found = { owner = fields[1], deleted = fields[2], generation = fields[3] }
    if found.owner and found.owner ~= args.owner then
      return { 'absent' }
    end
    -- A turn that is held under another fence was proposed by another replica, or taken over.
    local holder = redis.call('HGET', keys.open, open_field(keys, generation))
    local held = holder and words(holder)[2] == args.fence
    -- A key that outlived its session does not count.
    local known, digest
    if found.owner then
      known, digest = known_key(keys, args.key)
    end
    if known then
      if digest ~= args.request_digest then
        return { 'other_body' }
      end
      if known ~= generation or not held then
        return { 'same', known, accepted_after(keys, known) }
      end
    end
    if held then
      -- A repeat after a lost reply.
      local before, before_tag = accepted_after(keys, generation)
      return { found.generation == generation and 'began' or 'waiting', before, before_tag, fields[7],
        before == '0' and '1' or '0' }
    end
    if holder or redis.call('EXISTS', ended_key(keys, generation)) == 1 then
      return { 'same', generation, accepted_after(keys, generation) }
    end
    if args.own_conversation ~= '0' and found.owner and not found.deleted then
      return { 'occupied' }
    end
    if args.anchor ~= '' and (not found.owner or found.deleted) then
      return { 'absent' }
    end
    -- Before the anchor, whose message may be large.
    if fields[8] or redis.call('LLEN', keys.waiting) >= tonumber(args.waiting_limit) then
      return { 'busy' }
    end
    local position = true
    if args.anchor ~= '' then
      if fields[9] then
        -- A conversation that came with its turn does not branch: its front finds it by position.
        return { 'message' }
      end
      local refusal, parent = anchor_refusal(keys, args.anchor, found.generation)
      if refusal then
        return { refusal }
      end
      position = anchor_position(keys, args.anchor, parent)
      found.anchor_parent = parent
    end
    if tonumber(fields[4] or '0') + image_bytes(keys) + bytes_of_turn(args)
      > tonumber(args.bytes_limit) or redis.call('HLEN', keys.index) >= MOST_MESSAGES then
      return { 'full' }
    end
    local lacks = lacks_images(keys, args.header)
    if args.pictured == '1' then
      for _, entry in ipairs(args.conversation) do
        lacks = lacks or lacks_images(keys, entry)
      end
    end
    if lacks then
      return { 'images' }
    end
    -- A turn that goes to another branch waits until that is selected.
    local begins = not found.generation and redis.call('LLEN', keys.waiting) == 0 and position
    local epoch = fields[7] or FIRST_EPOCH
    if found.owner and not found.deleted and not fields[9] then
      change_expiry(keys, fields[10], args.idle_seconds)
    end
    local before
    if begins and args.anchor == '' and redis.call('EXISTS', keys.branches) == 1 then
      local _, id = kin_of(keys, last_number(keys))
      before = id
    end
    admit(keys, args, found, epoch, begins)
    return { begins and 'began' or 'waiting', fields[5] or '0', fields[6] or '0', epoch,
      (not found.owner or found.deleted) and '1' or '0', before or '-' }
  end,
}
