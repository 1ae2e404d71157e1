#!lua name=jarvis_0002
-- Heartbeats, and the turns that are open. Oldest supported binary: 0.1.0
--
-- A replica renews one counter. What it holds is held in its name and falls with it.

-- KEYS: 1 beats (hash: replica → counter, -1 once it has signed off)
-- replica → every replica and its counter
local function beat(keys, args)
  redis.call('HINCRBY', keys[1], args[1], 1)
  return redis.call('HGETALL', keys[1])
end

-- replica: everything in its name may be taken at once
local function sign_off(keys, args)
  redis.call('HSET', keys[1], args[1], -1)
  return 'ok'
end

-- replica, the counter that was observed: forgets it, unless it has moved
local function bury(keys, args)
  if redis.call('HGET', keys[1], args[1]) == args[2] then
    redis.call('HDEL', keys[1], args[1])
  end
  return 'ok'
end

-- KEYS: 1 open (of one bucket) → '<session> <generation>', '<replica> <fence>', …
local function open(keys)
  return redis.call('HGETALL', keys[1])
end

-- As in 0001.
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
  local flags = { ... }
  redis.register_function { function_name = 'jarvis_' .. name .. '_1', flags = flags,
    callback = flags[1] == 'no-writes' and callback or while_primary(callback) }
end

register('beat', beat, 'allow-oom')
register('sign_off', sign_off, 'allow-oom')
register('bury', bury, 'allow-oom')
register('open', open, 'no-writes')
