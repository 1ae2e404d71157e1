-- Reads what happened in the session after a place in its log: events, and text of the answers that
-- they tell of. Of a deleted session, too: how it ended is still to be told.
--
-- Keys:       session, messages, index, events, answer
-- Arguments:  owner
--             number, tag   of the last event that the reader has; tag - : from where the running
--                           turn began, else from the end
--             generation    whose answer the reader has a part of, or -
--             held          bytes of that answer that the reader has
--             bytes         of events and answers, at most, but for one event that is larger alone
-- Reply:      absent
--             behind    what follows is no longer kept
--             unknown   the place is of another history, or of one that a failover took
--             ok <number> <tag> <running|-> <1 if there is more> <count of events>, the events, and
--             generation, offset and text of each answer
-- Called by:  Store::read, Store::answer_so_far

-- Events that are read from the log at a time.
local CHUNK = 8

-- Whether the generation was cancelled by one of the events from here on, and a clear then took its
-- text.
local function is_taken_by_clear(keys, generation, place)
  local cleared = false
  local list = redis.call('LRANGE', keys.events, place, -1)
  for i = #list, 1, -1 do
    local header = words(line(list[i], 1))
    cleared = cleared or header[5] == 'cleared'
    if cleared and header[5] == 'cancelled' and header[6] == generation then
      return true
    end
  end
  return false
end

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
      true_tag = words(line(redis.call('LINDEX', keys.events, number - first), 1))[2]
    elseif number > 0 then
      true_tag = fields[5]
    end
    if true_tag ~= tag then
      return { 'unknown' }
    end
    local room = tonumber(args.bytes)
    local answers, given = {}, {}
    local function give(id, from)
      if given[id] then
        return true
      end
      local bytes
      if id == running then
        bytes = redis.call('GETRANGE', keys.answer, from, -1)
      else
        bytes = ended_answer(keys, id, from)
        if not bytes and is_taken_by_clear(keys, id, number - first + 1) then
          bytes, from = '', 0
        end
        if not bytes then
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
    local chunk = {}
    for place = number - first + 1, kept - 1 do
      local event = table.remove(chunk, 1)
      if not event then
        chunk = redis.call('LRANGE', keys.events, place, place + CHUNK - 1)
        event = table.remove(chunk, 1)
      end
      local header = words(line(event, 1))
      local kind, about = header[5], header[6]
      room = room - #event
      if room < 0 and #events > 0 then
        running, more = '-', '1'
        break
      end
      if about ~= '-' and (kind == 'started' or (about == generation and kind ~= 'claimed')) then
        if not give(about, about == generation and held or 0) and kind == 'started' then
          -- Its text was cleared.
          return { 'behind' }
        end
      end
      events[#events + 1] = event
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
  end,
}
