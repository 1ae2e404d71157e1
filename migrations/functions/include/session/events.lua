-- The log of a session's control events.

local EVENTS_KEPT = 128
local EVENT_BYTES_KEPT = 1048576

local function drop_event(keys)
  local dropped = redis.call('LPOP', keys.events)
  redis.call('HSET', keys.session, 'dropped_tag', words(line(dropped, 1))[2])
  return redis.call('HINCRBY', keys.session, 'event_bytes', -#dropped)
end

-- Writes a control event at the end of the log, and publishes it. Gives its number.
local function push_event(keys, tag, kind, generation, json)
  local running = redis.call('HGET', keys.session, 'generation') or '-'
  local length = running == '-' and 0 or redis.call('STRLEN', keys.answer)
  local number = redis.call('HINCRBY', keys.session, 'events', 1)
  local entry = number .. ' ' .. tag .. ' ' .. running .. ' ' .. length .. ' ' .. kind .. ' '
    .. generation .. '\n' .. json
  local kept = redis.call('RPUSH', keys.events, entry)
  local bytes = redis.call('HINCRBY', keys.session, 'event_bytes', #entry)
  while kept > 1 and (kept > EVENTS_KEPT or bytes > EVENT_BYTES_KEPT) do
    bytes = drop_event(keys)
    kept = kept - 1
  end
  redis.call('HSET', keys.session, 'tag', tag)
  redis.call('SPUBLISH', keys.session, 'e' .. entry)
  return number
end

-- The number and tag of the event before the one that accepted this generation, - where that is no
-- longer kept.
local function accepted_after(keys, generation)
  local list = redis.call('LRANGE', keys.events, 0, -1)
  for i = #list, 1, -1 do
    local header = words(line(list[i], 1))
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
