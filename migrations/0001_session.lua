-- Sessions. Oldest supported binary: 0.1.0
--
-- Every function takes the session's keys and, first, who is asking. A session of somebody else
-- looks like one that is not there. Fences, tags, identifiers and times are made by the caller, so
-- that a repeated call, after a reply that was lost, changes nothing.
--
-- KEYS: 1 session (hash, and the name of the channel)  2 messages  3 waiting  4 events  5 answer
--       6 open (one a bucket)  7 idempotency key (only where one is given)
--
-- Stored forms, a header line that is read here and the rest that is not:
--   message   <json header> \n <content>
--   event     <number> <tag> <running generation|-> <its length> <kind> <generation|-> \n <json>
--   waiting   <generation> <fence> <replica> <number of its accepted event> \n <turn json> \n <message header json> \n <content>

local EVENTS_KEPT = 128
local EVENT_BYTES_KEPT = 1048576
-- Longer than any writer may ask for its turn to be restored.
local ENDED_SECONDS = 180

local function meta(keys, ...)
  return redis.call('HMGET', keys[1], ...)
end

-- The session's fields, or nil where it is absent, deleted or another owner's.
local function owned(keys, owner, ...)
  local found = meta(keys, 'owner', 'deleted', ...)
  if not found[1] or found[1] ~= owner or found[2] then
    return nil
  end
  local fields = {}
  for i = 3, #found do
    fields[i - 2] = found[i]
  end
  return fields
end

local function line(text, from)
  local at = string.find(text, '\n', from, true)
  return string.sub(text, from, at - 1), at + 1
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do
    list[#list + 1] = word
  end
  return list
end

local function open_field(keys, generation)
  return string.match(keys[1], '([^:]+)$') .. ' ' .. generation
end

local function drop_event(keys)
  local dropped = redis.call('LPOP', keys[4])
  redis.call('HSET', keys[1], 'dropped_tag', words(line(dropped, 1))[2])
  return redis.call('HINCRBY', keys[1], 'event_bytes', -#dropped)
end

-- Writes a control event at the end of what has happened so far, and announces it.
local function push_event(keys, tag, kind, generation, json)
  local running = redis.call('HGET', keys[1], 'generation') or '-'
  local length = running == '-' and 0 or redis.call('STRLEN', keys[5])
  local number = redis.call('HINCRBY', keys[1], 'events', 1)
  local entry = number .. ' ' .. tag .. ' ' .. running .. ' ' .. length .. ' ' .. kind .. ' '
    .. generation .. '\n' .. json
  local kept = redis.call('RPUSH', keys[4], entry)
  local bytes = redis.call('HINCRBY', keys[1], 'event_bytes', #entry)
  while kept > 1 and (kept > EVENTS_KEPT or bytes > EVENT_BYTES_KEPT) do
    bytes = drop_event(keys)
    kept = kept - 1
  end
  redis.call('HSET', keys[1], 'tag', tag)
  redis.call('SPUBLISH', keys[1], 'e' .. entry)
  return number
end

local function push_message(keys, header, content)
  redis.call('RPUSH', keys[2], header .. '\n' .. content)
  redis.call('HINCRBY', keys[1], 'bytes', #header + 1 + #content)
end

local function keep(keys, seconds)
  if tonumber(seconds) > 0 then
    for i = 1, 5 do
      redis.call('EXPIRE', keys[i], seconds)
    end
  end
end

local function find_waiting(keys, generation)
  for _, entry in ipairs(redis.call('LRANGE', keys[3], 0, -1)) do
    local header = words(line(entry, 1))
    if header[1] == generation then
      return entry, header
    end
  end
end

local function make_running(keys, generation, fence, replica, turn, header, content)
  push_message(keys, header, content)
  redis.call('DEL', keys[5])
  redis.call('HSET', keys[1], 'generation', generation, 'fence', fence, 'replica', replica,
    'turn', turn, 'writers', 1)
  redis.call('HDEL', keys[1], 'started', 'mark')
end

local function ended_key(keys, generation)
  return keys[1] .. ':ended:' .. generation
end

local function hold(keys, generation, replica, fence)
  redis.call('HSET', keys[6], open_field(keys, generation), replica .. ' ' .. fence)
end

-- A generation ends once. What ended it is remembered for as long as somebody may try again.
local function release(keys, generation, by)
  redis.call('HDEL', keys[6], open_field(keys, generation))
  redis.call('SET', ended_key(keys, generation), by, 'EX', ENDED_SECONDS)
end

local function forget_running(keys)
  redis.call('HDEL', keys[1], 'generation', 'fence', 'replica', 'turn', 'writers', 'started', 'mark')
end

-- Takes what was said out of what was told.
local function silence(keys)
  for i, entry in ipairs(redis.call('LRANGE', keys[4], 0, -1)) do
    local header, at = line(entry, 1)
    if words(header)[5] == 'accepted' then
      local event = cjson.decode(string.sub(entry, at))
      event.accepted.message = ''
      local silent = header .. '\n' .. cjson.encode(event)
      redis.call('LSET', keys[4], i - 1, silent)
      redis.call('HINCRBY', keys[1], 'event_bytes', #silent - #entry)
    end
  end
end

-- The number and tag of the event before the one that accepted this generation, - where that is no
-- longer kept.
local function accepted_after(keys, generation)
  local list = redis.call('LRANGE', keys[4], 0, -1)
  for i = #list, 1, -1 do
    local header = words(line(list[i], 1))
    if header[5] == 'accepted' and header[6] == generation then
      local number = tonumber(header[1]) - 1
      if number == 0 then
        return '0', '0'
      elseif i > 1 then
        return tostring(number), words(line(list[i - 1], 1))[2]
      end
      return tostring(number), redis.call('HGET', keys[1], 'dropped_tag')
    end
  end
  return '-', '-'
end

-- The session's fields, after generation and fence, where owner, generation and fence in args are
-- those of the running turn.
local function of_writer(keys, args, ...)
  local fields = owned(keys, args[1], 'generation', 'fence', ...)
  if fields and fields[1] == args[2] and fields[2] == args[3] then
    return fields
  end
end

-- Ends the running generation: its answer so far becomes a message.
local function close_running(keys, generation, header, by)
  push_message(keys, header, redis.call('GET', keys[5]) or '')
  forget_running(keys)
  release(keys, generation, by)
end

-- What accept and restore are given:
-- 1 owner  2 generation  3 fence  4 replica  5 turn  6 message header  7 content  8 tag  9 event
-- 10 title  11 model  12 now  13 idle seconds  14 most waiting  15 most bytes  16 body hash
-- 17 key seconds  18 epoch (accept: where the session was deleted)

-- A session's first life has this epoch wherever it begins, so that turns of one that a failover took
-- know it again; clear and delete begin another.
local FIRST_EPOCH = '0'

-- Writes the turn. With begins it is the running one, else it waits, in the order of acceptance.
local function admit(keys, args, found, epoch, begins, number)
  local owner, generation, fence, replica = args[1], args[2], args[3], args[4]
  if not found.owner or found.deleted then
    redis.call('HSET', keys[1], 'owner', owner, 'created', args[12], 'title', args[10],
      'epoch', epoch)
    redis.call('HDEL', keys[1], 'deleted')
    redis.call('PERSIST', keys[1])
    redis.call('PERSIST', keys[4])
  end
  redis.call('HSET', keys[1], 'updated', args[12], 'model', args[11])
  if keys[7] then
    redis.call('SET', keys[7], generation .. ' ' .. args[16], 'EX', args[17])
  end
  hold(keys, generation, replica, fence)
  local written = push_event(keys, args[8], 'accepted', generation, args[9])
  number = number or written
  if begins then
    make_running(keys, generation, fence, replica, args[5], args[6], args[7])
  else
    local entry = generation .. ' ' .. fence .. ' ' .. replica .. ' ' .. number .. '\n' .. args[5]
      .. '\n' .. args[6] .. '\n' .. args[7]
    local later
    for _, other in ipairs(redis.call('LRANGE', keys[3], 0, -1)) do
      if not later and tonumber(words(line(other, 1))[4]) > tonumber(number) then
        later = other
      end
    end
    if later then
      redis.call('LINSERT', keys[3], 'BEFORE', later, entry)
    else
      redis.call('RPUSH', keys[3], entry)
    end
  end
  keep(keys, args[13])
end

-- → began <events before> <tag before> <epoch> | waiting <events before> <tag before> <epoch>
-- | same <generation> <events before|-> <tag before|-> | other_body | absent | busy | full
local function accept(keys, args)
  local owner, generation = args[1], args[2]
  local fields = meta(keys, 'owner', 'deleted', 'generation', 'bytes', 'events', 'tag', 'epoch')
  local found = { owner = fields[1], deleted = fields[2], generation = fields[3] }
  if found.owner and found.owner ~= owner then
    return { 'absent' }
  end
  -- Held under another fence, it was proposed by somebody else, or is taken over.
  local holder = redis.call('HGET', keys[6], open_field(keys, generation))
  local held = holder and words(holder)[2] == args[3]
  local known = keys[7] and redis.call('GET', keys[7])
  if known then
    local known_words = words(known)
    if known_words[2] ~= args[16] then
      return { 'other_body' }
    end
    if known_words[1] ~= generation or not held then
      return { 'same', known_words[1], accepted_after(keys, known_words[1]) }
    end
  end
  if held then
    -- A repeat after a lost reply.
    local before, before_tag = accepted_after(keys, generation)
    return { found.generation == generation and 'began' or 'waiting', before, before_tag, fields[7] }
  end
  if holder or redis.call('EXISTS', ended_key(keys, generation)) == 1 then
    return { 'same', generation, accepted_after(keys, generation) }
  end
  if redis.call('LLEN', keys[3]) >= tonumber(args[14]) then
    return { 'busy' }
  end
  if tonumber(fields[4] or '0') + #args[7] > tonumber(args[15]) then
    return { 'full' }
  end
  local begins = not found.generation and redis.call('LLEN', keys[3]) == 0
  local epoch = fields[7] or FIRST_EPOCH
  if found.deleted then
    epoch = args[18]
  end
  admit(keys, args, found, epoch, begins)
  return { begins and 'began' or 'waiting', fields[5] or '0', fields[6] or '0', epoch }
end

-- Moves a turn from one holder to another.
local function take(keys, generation, fence, replica, tag, event)
  redis.call('HSET', keys[1], 'fence', fence, 'replica', replica)
  redis.call('HDEL', keys[1], 'mark')
  redis.call('HINCRBY', keys[1], 'writers', 1)
  hold(keys, generation, replica, fence)
  push_event(keys, tag, 'claimed', generation,
    (string.gsub(event, 'LENGTH', redis.call('STRLEN', keys[5]))))
end

local function take_waiting(keys, entry, generation, fence, replica)
  local _, at = line(entry, 1)
  local number = words(line(entry, 1))[4]
  local moved = generation .. ' ' .. fence .. ' ' .. replica .. ' ' .. number .. '\n'
    .. string.sub(entry, at)
  redis.call('LINSERT', keys[3], 'BEFORE', entry, moved)
  redis.call('LREM', keys[3], 1, entry)
  hold(keys, generation, replica, fence)
end

-- As accept, then 19 the fence that this one replaced, or -  20 tag of that claim  21 its event
-- 22 number of the accepted event.
-- For a holder whose turn Redis seems not to have: after a failover its last writes may be gone.
-- A turn that is not there at all waits at first, so that earlier ones of its session can come back
-- before it.
-- → kept | claimed | waiting | gone
local function restore(keys, args)
  local owner, generation, fence, replica = args[1], args[2], args[3], args[4]
  local fields = meta(keys, 'owner', 'deleted', 'generation', 'fence', 'epoch')
  local found = { owner = fields[1], deleted = fields[2], generation = fields[3] }
  if found.owner and (found.owner ~= owner or found.deleted or fields[5] ~= args[18]) then
    return 'gone'
  end
  if redis.call('EXISTS', ended_key(keys, generation)) == 1 then
    return 'gone'
  end
  if found.generation == generation then
    if fields[4] == fence then
      return 'kept'
    elseif fields[4] ~= args[19] then
      return 'gone'
    end
    take(keys, generation, fence, replica, args[20], args[21])
    return 'claimed'
  end
  local entry, header = find_waiting(keys, generation)
  if entry then
    if header[2] == args[19] then
      take_waiting(keys, entry, generation, fence, replica)
    elseif header[2] ~= fence then
      return 'gone'
    end
    return 'waiting'
  end
  -- Its client was faster, and has sent it again.
  local known = keys[7] and redis.call('GET', keys[7])
  if known and words(known)[1] ~= generation then
    return 'gone'
  end
  admit(keys, args, found, args[18], false, args[22])
  return 'waiting'
end

-- owner, generation, fence → began | waiting | gone
local function begin(keys, args)
  local owner, generation, fence = args[1], args[2], args[3]
  local fields = owned(keys, owner, 'generation', 'fence')
  if not fields then
    return 'gone'
  end
  if fields[1] == generation then
    return fields[2] == fence and 'began' or 'gone'
  end
  local entry, header = find_waiting(keys, generation)
  if not entry or header[2] ~= fence then
    return 'gone'
  end
  if fields[1] or redis.call('LINDEX', keys[3], 0) ~= entry then
    return 'waiting'
  end
  local _, at = line(entry, 1)
  local turn, message
  turn, at = line(entry, at)
  message, at = line(entry, at)
  redis.call('LPOP', keys[3])
  make_running(keys, generation, fence, header[3], turn, message, string.sub(entry, at))
  return 'began'
end

-- A writer leaves a mark: the tag of its last event that shaped the answer. Where it is another, a
-- failover took that event, and nothing may be written before it is told again.

-- owner, generation, fence, tag, event → ok | fenced
local function start(keys, args)
  local fields = of_writer(keys, args, 'started', 'events', 'tag')
  if not fields then
    return { 'fenced' }
  end
  if not fields[3] then
    redis.call('HSET', keys[1], 'started', fields[4] .. ' ' .. fields[5])
    push_event(keys, args[4], 'started', args[2], args[5])
  end
  redis.call('HSET', keys[1], 'mark', args[4])
  return { 'ok' }
end

-- owner, generation, fence, mark, offset, bytes (none: only looks whether all is well)
-- → ok | fenced | unmarked | hole <length>
local function append(keys, args)
  local fields = of_writer(keys, args, 'mark', 'events')
  if not fields then
    return { 'fenced' }
  end
  if fields[3] ~= args[4] then
    return { 'unmarked' }
  end
  local offset, length = tonumber(args[5]), redis.call('STRLEN', keys[5])
  if offset > length then
    return { 'hole', tostring(length) }
  end
  if #args[6] == 0 then
    return { 'ok' }
  end
  if offset + #args[6] > length then
    redis.call('SETRANGE', keys[5], offset, args[6])
  end
  redis.call('SPUBLISH', keys[1],
    'p' .. args[2] .. ' ' .. args[5] .. ' ' .. fields[4] .. '\n' .. args[6])
  return { 'ok' }
end

-- owner, generation, fence, mark, length, message header, now, idle seconds, then (tag, kind, event)
-- for each event → ok | fenced | unmarked | hole <length>
local function finish(keys, args)
  local fields = of_writer(keys, args, 'mark')
  if not fields then
    return { redis.call('GET', ended_key(keys, args[2])) == args[3] and 'ok' or 'fenced' }
  end
  local length = redis.call('STRLEN', keys[5])
  if fields[3] ~= args[4] or length > tonumber(args[5]) then
    return { 'unmarked' }
  end
  if length < tonumber(args[5]) then
    return { 'hole', tostring(length) }
  end
  for i = 9, #args, 3 do
    push_event(keys, args[i], args[i + 1], args[2], args[i + 2])
  end
  close_running(keys, args[2], args[6], args[3])
  redis.call('HSET', keys[1], 'updated', args[7])
  keep(keys, args[8])
  return { 'ok' }
end

-- owner, generation or -, message header with GENERATION, MODEL and WRITERS to fill in, tag, event,
-- 1 if done again after a failover: a turn that is not there may not come back either
-- → cancelled <generation> running|waiting | none | absent
local function cancel(keys, args)
  if args[6] == '1' and redis.call('HEXISTS', keys[6], open_field(keys, args[2])) == 0 then
    redis.call('SET', ended_key(keys, args[2]), 'cancel', 'NX', 'EX', ENDED_SECONDS)
    return { 'none' }
  end
  local fields = owned(keys, args[1], 'generation', 'turn', 'writers', 'tag')
  if not fields then
    return { 'absent' }
  end
  if fields[4] == args[4] then
    -- A repeat after a lost reply.
    return { 'cancelled', words(line(redis.call('LINDEX', keys[4], -1), 1))[6], 'running' }
  end
  local wanted = args[2]
  if fields[1] and (wanted == '-' or wanted == fields[1]) then
    local model = cjson.encode(cjson.decode(fields[2]).model)
    local fill = { GENERATION = fields[1], MODEL = model, WRITERS = fields[3] }
    push_event(keys, args[4], 'cancelled', fields[1], args[5])
    close_running(keys, fields[1], (string.gsub(args[3], '%u%u%u%u%u+', fill)), 'cancel')
    return { 'cancelled', fields[1], 'running' }
  end
  local entry, header
  if wanted == '-' then
    entry = redis.call('LINDEX', keys[3], 0)
    header = entry and words(line(entry, 1))
  else
    entry, header = find_waiting(keys, wanted)
  end
  if not entry then
    return { 'none' }
  end
  redis.call('LREM', keys[3], 1, entry)
  release(keys, header[1], 'cancel')
  push_event(keys, args[4], 'cancelled', header[1], args[5])
  return { 'cancelled', header[1], 'waiting' }
end

-- generation: the writer tells that its request to the model's host is closed
local function closed(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then
    redis.call('HSET', keys[1], 'closed', args[1])
  end
  redis.call('SPUBLISH', keys[1], 'x' .. args[1])
  return 'ok'
end

-- owner, delete?, tag, event, cancel event, now, tombstone seconds, new epoch, the epoch to be cleared
-- or - for any, then a tag for each turn that is cancelled with it → messages | -1, the epoch cleared
local function clear(keys, args)
  local fields = owned(keys, args[1], 'generation', 'epoch')
  if not fields or (args[9] ~= '-' and args[9] ~= fields[2]) then
    return { '-1', '-' }
  end
  local count = redis.call('LLEN', keys[2])
  if fields[1] then
    push_event(keys, args[10], 'cancelled', fields[1], args[5])
    forget_running(keys)
    release(keys, fields[1], 'clear')
  end
  for place, entry in ipairs(redis.call('LRANGE', keys[3], 0, -1)) do
    local header = words(line(entry, 1))
    release(keys, header[1], 'clear')
    push_event(keys, args[10 + place], 'cancelled', header[1], args[5])
  end
  push_event(keys, args[3], 'cleared', '-', args[4])
  redis.call('DEL', keys[2], keys[3], keys[5])
  redis.call('HSET', keys[1], 'bytes', 0, 'updated', args[6], 'epoch', args[8])
  if args[2] == '1' then
    -- How it ended stays for an hour, what was said in it does not.
    silence(keys)
    redis.call('HSET', keys[1], 'deleted', 1)
    redis.call('EXPIRE', keys[1], args[7])
    redis.call('EXPIRE', keys[4], args[7])
  end
  return { tostring(count), fields[2] }
end

-- owner, title, now → ok | absent
local function retitle(keys, args)
  if not owned(keys, args[1]) then
    return 'absent'
  end
  redis.call('HSET', keys[1], 'title', args[2], 'updated', args[3])
  return 'ok'
end

local function describe(keys, owner)
  local fields = owned(keys, owner, 'title', 'model', 'created', 'updated', 'generation', 'closed')
  if not fields then
    return { 'absent' }
  end
  local count = redis.call('LLEN', keys[2])
  return { 'ok', fields[1], fields[2], fields[3], fields[4], tostring(count), fields[5] or '-',
    fields[6] or '-' }
end

-- owner, generation or - → ok <title> <model> <created> <updated> <messages> <running|-> <closed|->
-- <1 if the generation waits or runs> | absent
local function session(keys, args)
  local reply = describe(keys, args[1])
  if reply[1] == 'ok' then
    reply[#reply + 1] = tostring(redis.call('HEXISTS', keys[6], open_field(keys, args[2])))
  end
  return reply
end

-- owner, first, last (from the end where negative), most bytes, 1 to fill from the newest
-- → as session up to closed, then the index of the first message given, then the messages
local function messages(keys, args)
  local reply = describe(keys, args[1])
  if reply[1] ~= 'ok' then
    return reply
  end
  local total = tonumber(reply[6])
  local first, last = tonumber(args[2]), tonumber(args[3])
  if first < 0 then first = math.max(total + first, 0) end
  if last < 0 then last = total + last end
  last = math.min(last, total - 1)
  local list = first <= last and redis.call('LRANGE', keys[2], first, last) or {}
  local room, from, to = tonumber(args[4]), 1, #list
  if args[5] == '1' then
    local at = #list
    while at >= 1 and (room >= #list[at] or at == #list) do
      room = room - #list[at]
      at = at - 1
    end
    from = at + 1
  else
    local at = 1
    while at <= #list and (room >= #list[at] or at == 1) do
      room = room - #list[at]
      at = at + 1
    end
    to = at - 1
  end
  reply[#reply + 1] = tostring(first + from - 1)
  for i = from, to do
    reply[#reply + 1] = list[i]
  end
  return reply
end

-- The stored answer of a generation that has ended, or nil: it is near the end of the messages.
local function ended_answer(keys, generation)
  local list = redis.call('LRANGE', keys[2], -40, -1)
  for i = #list, 1, -1 do
    local header, at = line(list[i], 1)
    if string.find(header, generation, 1, true) then
      return string.sub(list[i], at)
    end
  end
end

-- Of these events, the generations that were cancelled and whose text a clear then took.
local function taken_by_clear(list)
  local taken, cleared = {}, false
  for i = #list, 1, -1 do
    local header = words(line(list[i], 1))
    cleared = cleared or header[5] == 'cleared'
    if cleared and header[5] == 'cancelled' then
      taken[header[6]] = true
    end
  end
  return taken
end

-- owner, events, tag (or - : from where the running turn began, else the end), generation or -,
-- bytes of it that the reader holds, most bytes
-- → absent | behind (what follows is no longer kept) | unknown (of another history, or one that Redis
-- does not have yet) | ok <events> <tag> <running|-> <1 if there is more> <events that follow>
--   {event} {generation, from, bytes}
local function read(keys, args)
  local fields = meta(keys, 'events', 'tag', 'generation', 'started', 'dropped_tag', 'owner')
  -- Of a deleted session too: how it ended is still to be told.
  if not fields[6] or fields[6] ~= args[1] then
    return { 'absent' }
  end
  local tip, running = tonumber(fields[1]), fields[3] or '-'
  local number, tag = tonumber(args[2]), args[3]
  local generation, held = args[4], tonumber(args[5])
  local kept = redis.call('LLEN', keys[4])
  local first = tip - kept + 1
  if tag == '-' then
    number, tag, generation, held = tip, fields[2], '-', 0
    local start = words(fields[4] or '')
    if start[1] and tonumber(start[1]) >= first - 1 then
      number, tag = tonumber(start[1]), start[2]
    elseif start[1] then
      -- How it began is no longer kept, but its text is.
      generation = running
    end
  end
  if number < first - 1 then
    return { 'behind' }
  end
  if number > tip then
    return { 'unknown' }
  end
  local true_tag = '0'
  if number >= first then
    true_tag = words(line(redis.call('LINDEX', keys[4], number - first), 1))[2]
  elseif number > 0 then
    true_tag = fields[5]
  end
  if true_tag ~= tag then
    return { 'unknown' }
  end
  local room = tonumber(args[6])
  local list = number < tip and redis.call('LRANGE', keys[4], number - first + 1, -1) or {}
  local answers, given, taken = {}, {}, taken_by_clear(list)
  local function give(id, from)
    if given[id] then
      return true
    end
    local bytes
    if id == running then
      bytes = redis.call('GETRANGE', keys[5], from, -1)
    else
      bytes = ended_answer(keys, id)
      if bytes then
        bytes = string.sub(bytes, from + 1)
      elseif taken[id] then
        bytes, from = '', 0
      else
        return false
      end
    end
    given[id] = true
    room = room - #bytes
    answers[#answers + 1] = { id, tostring(from), bytes }
    return true
  end
  local events, more = {}, '0'
  if generation ~= '-' and generation == running then
    give(generation, held)
  end
  for i = 1, #list do
    local header = words(line(list[i], 1))
    local kind, about = header[5], header[6]
    room = room - #list[i]
    if room < 0 and i > 1 then
      running, more = '-', '1'
      break
    end
    if about ~= '-' and (kind == 'started' or (about == generation and kind ~= 'claimed')) then
      if not give(about, about == generation and held or 0) and kind == 'started' then
        -- Its text was cleared or is too far back.
        return { 'behind' }
      end
    end
    events[#events + 1] = list[i]
  end
  local reply = { 'ok', tostring(number), tag, running, more, tostring(#events) }
  for _, event in ipairs(events) do
    reply[#reply + 1] = event
  end
  for _, answer in ipairs(answers) do
    for i = 1, 3 do
      reply[#reply + 1] = answer[i]
    end
  end
  return reply
end

-- generation, fence it replaces, new fence, replica, tag, event with LENGTH to fill in
-- → running <turn> <owner> <epoch> <user's message> <writers>
-- | waiting <turn> <owner> <epoch> <user's message> | other
local function claim(keys, args)
  local generation, old, fence, replica = args[1], args[2], args[3], args[4]
  local found = meta(keys, 'generation', 'fence', 'turn', 'owner', 'epoch')
  if found[1] == generation then
    if found[2] == old then
      take(keys, generation, fence, replica, args[5], args[6])
    elseif found[2] ~= fence then
      return { 'other' }
    end
    -- Nothing joins the messages while a turn runs.
    return { 'running', found[3], found[4], found[5], redis.call('LINDEX', keys[2], -1),
      redis.call('HGET', keys[1], 'writers') }
  end
  local entry, header = find_waiting(keys, generation)
  if not entry then
    redis.call('HDEL', keys[6], open_field(keys, generation))
    return { 'other' }
  end
  if header[2] == old then
    take_waiting(keys, entry, generation, fence, replica)
  elseif header[2] ~= fence then
    return { 'other' }
  end
  local _, at = line(entry, 1)
  local turn, message = line(entry, at)
  return { 'waiting', turn, found[4], found[5], string.sub(entry, message) }
end

-- owner, generation, fence, mark, length, tag, event, 1 if more may have been told than is here: takes
-- back what lies beyond → ok | fenced | unmarked
local function rewind(keys, args)
  local fields = of_writer(keys, args, 'mark')
  if not fields then
    return { 'fenced' }
  end
  if fields[3] == args[6] then
    -- A repeat after a lost reply.
    return { 'ok' }
  elseif fields[3] ~= args[4] then
    return { 'unmarked' }
  end
  local length, beyond = tonumber(args[5]), args[8] == '1'
  if redis.call('STRLEN', keys[5]) > length then
    local kept = length > 0 and redis.call('GETRANGE', keys[5], 0, length - 1) or ''
    redis.call('SET', keys[5], kept)
    beyond = true
  end
  if beyond then
    push_event(keys, args[6], 'claimed', args[2], args[7])
  end
  redis.call('HSET', keys[1], 'mark', args[6])
  return { 'ok' }
end

register('accept', accept)
register('restore', restore)
register('begin', begin)
register('start', start)
register('append', append)
register('finish', finish, 'allow-oom')
register('cancel', cancel, 'allow-oom')
register('closed', closed, 'allow-oom')
register('clear', clear, 'allow-oom')
register('retitle', retitle)
register('claim', claim, 'allow-oom')
register('rewind', rewind, 'allow-oom')
register('session', session, 'no-writes')
register('messages', messages, 'no-writes')
register('read', read, 'no-writes')
