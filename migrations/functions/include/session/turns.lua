-- Turns: accepted, waiting, running, ended.

-- How long the end of a generation is remembered; longer than a writer may restore its turn.
local ENDED_SECONDS = 180
-- The first epoch of a session. Clear and delete begin another one, <microseconds>-<random>, whose
-- time decides which of two is the later one, whatever a failover lost. The first epoch is the same
-- for every session, so that the turns of a session that a failover lost can be restored.
local FIRST_EPOCH = '0'

-- Bytes that Redis takes for an idempotency key, about.
local KEY_BYTES = 400
-- Keys that one acceptance forgets, at most: more than it adds.
local KEYS_FORGOTTEN = 4

-- Returns the time of an epoch in microseconds, 0 for the first.
local function epoch_time(epoch)
  return tonumber(string.match(epoch, '^(%d+)%-') or '0')
end

-- Returns the time of Redis in microseconds.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Returns the field of a turn in the index of open turns.
local function open_field(keys, generation)
  return string.match(keys.session, '([^:]+)$') .. ' ' .. generation
end

-- Records the replica and the fence that hold a turn.
local function hold(keys, generation, replica, fence)
  redis.call('HSET', keys.open, open_field(keys, generation), replica .. ' ' .. fence)
end

-- Returns the key under which what ended a generation is remembered.
local function ended_key(keys, generation)
  return keys.ended .. ':' .. generation
end

-- Removes an open turn, and remembers for a while what ended it: a generation ends only once.
local function release(keys, generation, by)
  redis.call('HDEL', keys.open, open_field(keys, generation))
  redis.call('SET', ended_key(keys, generation), by, 'EX', ENDED_SECONDS)
end

-- Returns the entry of a waiting turn and its words, or nil.
local function find_waiting(keys, generation)
  for _, entry in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
    local waiting = words(entry)
    if waiting[1] == generation then
      return entry, waiting
    end
  end
end

-- Returns running generation, epoch and number of brought messages of the owner's session; for the
-- holder of a turn (its generation, else -) also where the session has become a user's since. Nil where
-- there is none.
local function owned_or_held(keys, owner, generation)
  if generation == '-' then
    return owned(keys, owner, 'generation', 'epoch', 'own_messages')
  end
  if redis.call('HEXISTS', keys.open, open_field(keys, generation)) == 1 then
    return owned_before(keys, owner, 'generation', 'epoch', 'own_messages')
  end
end

-- Returns generation, fence and these fields of the session, if the generation and fence in `args`
-- are those of the running turn, and the owner is its session's; otherwise nil.
local function of_writer(keys, args, ...)
  local fields = owned_before(keys, args.owner, 'generation', 'fence', ...)
  if fields and fields[1] == args.generation and fields[2] == args.fence then
    return fields
  end
end

-- Ends the path where a turn with this anchor, if it has one, takes its place: behind the first
-- `position` messages. Returns whether its question is yet to follow: that of an answer that is
-- regenerated is there.
local function take_place(keys, anchor, position)
  local kind = string.sub(anchor or '', 1, 1)
  if kind == '=' or kind == '+' then
    cut_path(keys, position)
  end
  return kind ~= '='
end

-- Makes a turn the running one, whose question is the last message: `accepted` has its generation,
-- fence, replica and turn (json).
local function make_running(keys, accepted)
  redis.call('UNLINK', keys.answer)
  redis.call('HSET', keys.session, 'generation', accepted.generation, 'fence', accepted.fence,
    'replica', accepted.replica, 'writers', 1)
  redis.call('HDEL', keys.session, 'started', 'revision')
  redis.call('HSET', keys.messages, 'turn', accepted.turn)
  redis.call('HINCRBY', keys.session, 'bytes', #accepted.turn)
  redis.call('HDEL', keys.messages, 'continued', 'runner')
end

-- Removes the running turn and its answer.
local function forget_running(keys)
  redis.call('HINCRBY', keys.session, 'bytes', -redis.call('HSTRLEN', keys.messages, 'turn'))
  redis.call('HDEL', keys.session, 'generation', 'fence', 'replica', 'writers', 'started', 'revision')
  redis.call('HDEL', keys.messages, 'turn', 'continued', 'runner')
  redis.call('UNLINK', keys.answer)
end

-- Ends the running generation: its answer so far becomes a message.
local function close_running(keys, generation, header, by)
  local text = redis.call('GET', keys.answer) or ''
  push_message(keys, header, text)
  -- The answer of a model that only calls tools has no text.
  if #text > 0 or string.find(header, '"l":[', 1, true) then
    redis.call('HDEL', keys.session, 'unanswered')
  end
  -- A conversation that came with its turn brings its images with each turn, and is not shown again.
  if redis.call('HGET', keys.session, 'own_images') == 'once'
    and redis.call('EXISTS', keys.waiting) == 0 then
    redis.call('UNLINK', keys.images)
  end
  forget_running(keys)
  release(keys, generation, by)
end

-- Returns the generation that is remembered under an idempotency key, and the digest of its request;
-- nil where there is none.
local function known_key(keys, key)
  local entry = key ~= '' and words(redis.call('HGET', keys.idempotency, key) or '0')
  if entry and tonumber(entry[1]) * 1000000 > now_us() then
    return entry[2], entry[3]
  end
end

-- Remembers the generation of an idempotency key, and forgets some of the keys whose time is over.
local function remember_key(keys, args)
  local now = math.floor(now_us() / 1000000)
  for _ = 1, KEYS_FORGOTTEN do
    local until_when, key = string.match(redis.call('LINDEX', keys.key_order, 0) or '', '^(%d+) (.*)$')
    if not key or tonumber(until_when) > now then
      break
    end
    redis.call('LPOP', keys.key_order)
    local known = redis.call('HGET', keys.idempotency, key)
    -- A key that was used again since has a later time.
    if known and tonumber(words(known)[1]) <= now then
      redis.call('HDEL', keys.idempotency, key)
      redis.call('HINCRBY', keys.session, 'bytes', -KEY_BYTES)
    end
  end
  local until_when = string.format('%.0f', now + args.key_seconds)
  local entry = until_when .. ' ' .. args.generation .. ' ' .. args.request_digest
  if redis.call('HSET', keys.idempotency, args.key, entry) == 1 then
    redis.call('HINCRBY', keys.session, 'bytes', KEY_BYTES)
  end
  redis.call('RPUSH', keys.key_order, until_when .. ' ' .. args.key)
end

-- Writes the messages that a turn brings instead of a stored history.
local function push_conversation(keys, args)
  push_conversation_messages(keys, args.conversation)
  if args.pictured == '1' then
    for _, entry in ipairs(args.conversation) do
      count_images(keys, entry, 1)
    end
  end
  redis.call('HSET', keys.session, 'own_messages', #args.conversation, 'idle_seconds',
    args.idle_seconds, 'own_images', args.own_conversation == 'once' and 'once' or 'kept')
end

-- Inserts a waiting turn, in the order of the numbers of the accepted events.
local function insert_waiting(keys, entry, number)
  for _, other in ipairs(redis.call('LRANGE', keys.waiting, 0, -1)) do
    if tonumber(words(other)[4]) > tonumber(number) then
      redis.call('LINSERT', keys.waiting, 'BEFORE', other, entry)
      return
    end
  end
  redis.call('RPUSH', keys.waiting, entry)
end

-- Writes a turn, with the arguments of accept or restore. With `begins` it is the running turn, at
-- this position of the path where it has an anchor; otherwise it waits, in the order of acceptance: by
-- `number`, that of its accepted event, where that was written before.
local function admit(keys, args, found, epoch, begins, number)
  if not found.owner or found.deleted then
    -- The session of a turn that is restored may have become a user's since.
    local owner, idle_seconds = args.owner, args.idle_seconds
    if found.transferred then
      owner, idle_seconds = found.owner, 0
    end
    if not found.owner then
      -- The keys of a session that expires do not all expire in one moment.
      redis.call('UNLINK', keys.messages, keys.path, keys.branches, keys.chains, keys.index, keys.waiting,
        keys.events, keys.answer, keys.idempotency, keys.key_order)
    else
      resume_log(keys)
    end
    redis.call('HSET', keys.session, 'owner', owner, 'created', args.now, 'epoch', epoch,
      'idle_seconds', idle_seconds, 'unanswered', 1, 'last_message', 0,
      -- A session that is restored is from before.
      'began', number and '0' or string.format('%.0f', now_us()))
    redis.call('HSET', keys.messages, 'title', args.title)
    redis.call('HDEL', keys.session, 'deleted', 'own_messages', 'own_images', 'unindexed', 'titled')
    if args.own_conversation == 'detached' then
      -- A failure is an answer, too, that its client comes back for.
      redis.call('HDEL', keys.session, 'unanswered')
    end
    if args.transfer_tag and owner ~= ANONYMOUS then
      -- A failover lost the whole session of a user. It may have been transferred, and turns from
      -- before are yet to be restored.
      redis.call('HSET', keys.session, 'transferred', found.transferred or args.transfer_tag)
    end
    for _, name in ipairs({ 'session', 'events', 'idempotency', 'key_order' }) do
      redis.call('PERSIST', keys[name])
    end
  elseif redis.call('HSTRLEN', keys.messages, 'title') == 0 then
    -- A session may begin without a turn, and so without a title.
    redis.call('HSET', keys.messages, 'title', args.title)
  end
  redis.call('HSET', keys.session, 'updated', args.now, 'model', args.model)
  if args.own_conversation ~= '0' and redis.call('HEXISTS', keys.session, 'own_messages') == 0 then
    push_conversation(keys, args)
  end
  if args.key ~= '' then
    remember_key(keys, args)
  end
  hold(keys, args.generation, args.replica, args.fence)
  local anchor = args.anchor ~= '' and args.anchor or nil
  -- A question that is answered once more is the same message, and published without its text.
  local is_regenerated = string.sub(args.anchor, 1, 1) == '='
  if not is_regenerated then
    count_images(keys, args.header, 1)
  end
  -- They were put before the session was there; `keep` sets the expiry that it has now.
  redis.call('PERSIST', keys.images)
  local written = push_event(keys, args.tag, 'accepted', args.generation, args.event,
    is_regenerated and '' or args.content)
  if begins then
    if take_place(keys, anchor, begins) then
      push_message(keys, args.header, args.content)
    end
    make_running(keys, args)
  else
    number = number or written
    put_waiting_question(keys, args.generation, args.header, args.content, args.turn)
    insert_waiting(keys, args.generation .. ' ' .. args.fence .. ' ' .. args.replica .. ' ' .. number
      .. (anchor and ' ' .. anchor or '')
      .. (found.anchor_parent and string.format(' %.0f', found.anchor_parent) or ''), number)
  end
  keep(keys)
end

-- Moves the running turn to another holder.
local function take(keys, generation, fence, replica, tag, event)
  redis.call('HSET', keys.session, 'fence', fence, 'replica', replica)
  redis.call('HDEL', keys.session, 'revision')
  redis.call('HINCRBY', keys.session, 'writers', 1)
  hold(keys, generation, replica, fence)
  push_event(keys, tag, 'claimed', generation,
    (string.gsub(event, 'LENGTH', redis.call('STRLEN', keys.answer))))
end

-- Moves a waiting turn to another holder.
local function take_waiting(keys, entry, generation, fence, replica)
  local known = words(entry)
  local moved = generation .. ' ' .. fence .. ' ' .. replica .. ' ' .. known[4]
    .. (known[5] and ' ' .. known[5] or '') .. (known[6] and ' ' .. known[6] or '')
  redis.call('LINSERT', keys.waiting, 'BEFORE', entry, moved)
  redis.call('LREM', keys.waiting, 1, entry)
  hold(keys, generation, replica, fence)
end
