-- Reads the events of the session after a position in its log, and the text of their answers. A
-- deleted session is read, too, because its last events are still delivered.
--
-- Keys:       session, messages, index, events, answer
-- Arguments:  owner
--             number, tag   of the last event that the reader has; with the tag - the read begins
--                           with the running turn, or at the end of the log where none runs
--             generation    of the answer of which the reader has a part, or -
--             held          bytes of that answer that the reader has
--             bytes         the largest size of events and answers; only a single event exceeds it
-- Reply:      absent    the owner has no such session
--             behind    the following events are no longer kept
--             unknown   the position is of another history, or of one that a failover lost
--             ok <number> <tag> <running|-> <1 if there is more> <count of events>, each event and
--             the message that it refers to, or empty, and generation, offset and text of each answer
-- Called by:  Store::read, Store::answer_so_far

-- The number of events that are read from the log at a time.
local CHUNK = 8
-- An offset behind the content of every message.
local NO_CONTENT = 1073741824

register {
  name = 'read',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'index', 'events', 'answer' },
  arguments = { 'owner', 'number', 'tag', 'generation', 'held', 'bytes' },
  run = function(keys, args)
    local fields = session_fields(keys, 'events', 'tag', 'generation', 'started', 'dropped_tag',
      'owner')
    if not fields[6] or fields[6] ~= args.owner then
      return { 'absent' }
    end
    local tip, running = tonumber(fields[1]), fields[3] or '-'
    local number, tag = tonumber(args.number), args.tag
    local generation, held = args.generation, tonumber(args.held)
    local kept = redis.call('LLEN', keys.events)
    local first = tip - kept + 1
    -- The log of a deleted session is gone before the session is.
    local dropped_tag = kept == 0 and fields[2] or fields[5]
    if tag == '-' then
      number, tag, generation, held = tip, fields[2], '-', 0
      local start = words(fields[4] or '')
      if start[1] and tonumber(start[1]) >= first - 1 then
        number, tag = tonumber(start[1]), start[2]
      elseif start[1] then
        -- The event of its beginning is no longer kept, but its text is.
        generation = running
      end
    end
    if number < first - 1 then
      return { 'behind' }
    end
    if number > tip then
      return { 'unknown' }
    end
    local stored_tag = '0'
    if number >= first then
      stored_tag = words(line(redis.call('LINDEX', keys.events, number - first), 1))[2]
    elseif number > 0 then
      stored_tag = dropped_tag
    end
    if stored_tag ~= tag then
      return { 'unknown' }
    end
    local room = tonumber(args.bytes)
    local answers, added, headers = {}, {}, {}
    -- Answers without a stored text: true where it is needed. One that a later event cancelled, and
    -- whose text a clear then removed, is empty.
    local missing, cancelled = {}, {}
    -- Adds the text of an answer from an offset on, or notes that it is not stored.
    local function add_answer(id, from, is_needed)
      if added[id] then
        return
      end
      local bytes
      if id == running then
        bytes = redis.call('GETRANGE', keys.answer, from, -1)
      else
        headers[id], bytes = find_message(keys, id, from)
      end
      if bytes then
        added[id] = true
        room = room - #bytes
        answers[#answers + 1] = { id, tostring(from), bytes }
      else
        missing[id] = missing[id] or is_needed
      end
    end
    -- Follows what an event did to the texts of the missing answers.
    local function follow(kind, about)
      if kind == 'cancelled' and missing[about] ~= nil then
        cancelled[#cancelled + 1] = about
      elseif kind == 'cleared' then
        for _, id in ipairs(cancelled) do
          if not added[id] then
            added[id], missing[id] = true, nil
            answers[#answers + 1] = { id, '0', '' }
          end
        end
        cancelled = {}
      end
    end
    local events, more = {}, '0'
    if generation ~= '-' and generation == running then
      add_answer(generation, held)
    end
    -- Each event is read once, also of a log that holds many cleared turns.
    local chunk, is_full = {}, false
    for index = number - first + 1, kept - 1 do
      local event = table.remove(chunk, 1)
      if not event then
        chunk = redis.call('LRANGE', keys.events, index, index + CHUNK - 1)
        event = table.remove(chunk, 1)
      end
      local header = event_header(event)
      local kind, about = header[5], header[6]
      local message = ''
      if not is_full then
        if kind == 'accepted' then
          message = question_content(keys, about)
        elseif kind == 'ended' then
          message = headers[about] or find_message(keys, about, NO_CONTENT)
          if not message then
            -- The answer was cleared.
            return { 'behind' }
          end
        end
        room = room - #event - #message
        is_full = room < 0 and #events > 0
      end
      if is_full and next(missing) == nil then
        break
      end
      if not is_full then
        if about ~= '-' and (kind == 'started' or (about == generation and kind ~= 'claimed')) then
          add_answer(about, about == generation and held or 0, kind == 'started')
        end
        events[#events + 1] = event
        events[#events + 1] = message
      end
      follow(kind, about)
    end
    if is_full then
      running, more = '-', '1'
    end
    for _, is_needed in pairs(missing) do
      if is_needed then
        -- The text of an answer was cleared, after it had ended.
        return { 'behind' }
      end
    end
    local reply = { 'ok', tostring(number), tag, running, more, tostring(#events / 2) }
    for _, event in ipairs(events) do
      reply[#reply + 1] = event
    end
    for _, answer in ipairs(answers) do
      for i = 1, 3 do
        reply[#reply + 1] = answer[i]
      end
    end
    return reply
  end,
}
