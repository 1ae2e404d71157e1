-- Stands at the beginning of every library, and is as little edited as they are.

-- What a call is given last: the key of the time until which this server is sure to be the primary, in
-- microseconds on its own clock, or - where nobody else can become it. One that was stopped, and
-- replaced meanwhile, must not carry out what it is told before it learns of that, and does not know what it is asked.
local function while_primary(callback)
  return function(keys, args)
    local term = table.remove(args)
    if term ~= '-' then
      local now = redis.call('TIME')
      if now[1] * 1000000 + now[2] > tonumber(redis.call('GET', term) or 0) then
        return redis.error_reply('DOUBTFUL this server may be no primary any more')
      end
    end
    return callback(keys, args)
  end
end

local function register(name, callback, ...)
  redis.register_function { function_name = 'jarvis_' .. name .. '_1', flags = { ... },
    callback = while_primary(callback) }
end
