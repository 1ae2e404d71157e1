-- The log of a session's control events.
--
-- An event with a message refers to it, so that no text is stored twice: `accepted` to the question
-- of its generation, and `ended` to the answer. A function that publishes or reads such an event puts the
-- message behind it: the content of the question, and the header of the answer.

-- The largest number and size of the events that are kept.

local EVENTS_KEPT = 128
local EVENT_BYTES_KEPT = 1048576
-- The largest message that is published with its event. To copy a larger one twice more would take longer
-- than a call may.
local PUBLISHED_BYTES = 262144
-- The text that is published instead: no replica can read it, and each reads the log instead.
local READ_INSTEAD = 'l'

-- Drops the oldest event. Returns the bytes of the events that are left.
local function drop_event(keys)
  local dropped = redis.call('LPOP', keys.events)
  redis.call('HSET', keys.session, 'dropped_tag', words(line(dropped, 1))[2])
  return redis.call('HINCRBY', keys.session, 'event_bytes', -#dropped)
end

-- Goes on with the log of a deleted session that is begun again. Its events may be gone, which takes
-- less time than that the deletion is forgotten.
local function resume_log(keys)
  if redis.call('EXISTS', keys.events) == 0 then
    redis.call('HSET', keys.session, 'event_bytes', 0, 'dropped_tag',
      redis.call('HGET', keys.session, 'tag') or '0')
  end
end

-- Returns the tag that is stored with an event: the sum of its own tag and the tags of all events
-- before it, 48 bits behind a digit that is never 0. So an equal number and tag mean the same
-- events up to there: an event that is written again after a failover has its old tag only where
-- all events before it are there, too. Their order does not matter: waiting turns are restored in
-- any order.
local function summed_tag(previous, tag)
  local function half(text, from, to)
    return tonumber(string.sub('00000000000' .. text, from, to), 16)
  end
  local low = half(previous, -6, -1) + half(tag, -6, -1)
  local high = half(previous, -12, -7) + half(tag, -12, -7) + math.floor(low / 16777216)
  return string.format('1%06x%06x', high % 16777216, low % 16777216)
end

-- Returns the words of a stored event's header, with the name of its generation in full.
local function event_header(entry)
  local header = words(line(entry, 1))
  if header[6] == '=' then
    header[6] = header[3]
  end
  return header
end

-- Appends a control event to the log, and publishes it with the stored tag of the event before it,
-- and with its message where it has one. With a large message, only that there is something to read is
-- published. Returns its number.
local function push_event(keys, own_tag, kind, generation, json, message)
  local previous = redis.call('HGET', keys.session, 'tag') or '0'
  local tag = summed_tag(previous, own_tag)
  local running = redis.call('HGET', keys.session, 'generation') or '-'
  local length = running == '-' and 0 or redis.call('STRLEN', keys.answer)
  local number = redis.call('HINCRBY', keys.session, 'events', 1)
  local entry = number .. ' ' .. tag .. ' ' .. running .. ' ' .. length .. ' ' .. kind .. ' '
    .. (generation == running and '=' or generation) .. '\n' .. json
  local kept = redis.call('RPUSH', keys.events, entry)
  local bytes = redis.call('HINCRBY', keys.session, 'event_bytes', #entry)
  while kept > 1 and (kept > EVENTS_KEPT or bytes > EVENT_BYTES_KEPT) do
    bytes = drop_event(keys)
    kept = kept - 1
  end
  redis.call('HSET', keys.session, 'tag', tag)
  if message and #message > PUBLISHED_BYTES then
    redis.call('SPUBLISH', keys.session, READ_INSTEAD)
  else
    redis.call('SPUBLISH', keys.session,
      'e' .. previous .. ' ' .. entry .. (message and '\n' .. message or ''))
  end
  return number
end

-- Returns the number and tag of the event before the one that accepted this generation, or - and -
-- where that is no longer kept.
local function accepted_after(keys, generation)
  local list = redis.call('LRANGE', keys.events, 0, -1)
  for i = #list, 1, -1 do
    local header = event_header(list[i])
    if header[5] == 'accepted' and header[6] == generation then
      local number = tonumber(header[1]) - 1
      if number == 0 then
        return '0', '0'
      elseif i > 1 then
        return tostring(number), words(line(list[i - 1], 1))[2]
      end
      return tostring(number), redis.call('HGET', keys.session, 'dropped_tag')
    end
  end
  return '-', '-'
end
