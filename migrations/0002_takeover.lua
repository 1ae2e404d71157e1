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

register('beat', beat, 'allow-oom')
register('sign_off', sign_off, 'allow-oom')
register('bury', bury, 'allow-oom')
register('open', open, 'no-writes')
