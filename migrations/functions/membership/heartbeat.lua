-- Renews a replica's heartbeat, and reads those of other replicas. While a heartbeat moves, no other
-- replica takes over its turns and slots.
--
-- Keys:       queue        the beginning of the names of the replicas' channels
--             heartbeats   hash: replica → a counter that rises several times a lease, -1 once the
--                          replica has signed off
--             figures      hash: replica → the time of Redis in milliseconds, and what the replica
--                          publishes of itself
-- Arguments:  replica
--             figures       of this replica, to be published; empty where they are not due
--             all          1 to read the heartbeats of all replicas, else 0
--             watched      the names of replicas whose connections are looked at, too
-- Reply:      server        another number after each start of this server
--             subscribers   of the replica's own channel; -1 where that is unknown
--             replicas      their number
--             counters      every replica and its counter; empty where `all` is 0
--             watched       of each watched replica: its counter or nil, and the subscribers of its
--                           channel
-- Called by:  MembershipStore::heartbeat

local server

-- Returns a number for this process of Redis: a server that starts or takes over has another one.
-- It outlives the load of a library, which every replica does at its start. Where this user may not
-- read it, it is the time of the load.
local function server_number()
  local info = redis.pcall('INFO', 'server')
  local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
  if run then
    -- 48 bits are exact in a number of Lua.
    return tonumber(string.sub(run, 1, 12), 16)
  end
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Returns the subscribers of the channel of each replica, -1 where they are unknown: this user may
-- lack the permission, without which deaths are noticed by heartbeats alone.
local function subscribers(queue, replicas)
  local channels = {}
  for i, replica in ipairs(replicas) do
    channels[i] = queue .. ':replica:' .. replica
  end
  local counted = redis.pcall('PUBSUB', 'SHARDNUMSUB', unpack(channels))
  local counts = {}
  for i = 1, #replicas do
    counts[i] = counted.err and -1 or counted[2 * i]
  end
  return counts
end

register {
  name = 'heartbeat',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue', 'heartbeats', 'figures' },
  arguments = { 'replica', 'figures', 'all' },
  rest = 'watched',
  run = function(keys, args)
    server = server or server_number()
    redis.call('HINCRBY', keys.heartbeats, args.replica, 1)
    if args.figures ~= '' then
      local time = redis.call('TIME')
      local now = time[1] * 1000 + math.floor(time[2] / 1000)
      redis.call('HSET', keys.figures, args.replica, string.format('%.0f ', now) .. args.figures)
    end
    local replicas = { args.replica, unpack(args.watched) }
    local counts = subscribers(keys.queue, replicas)
    local counters = redis.call('HMGET', keys.heartbeats, unpack(replicas))
    local watched = {}
    for i = 2, #replicas do
      watched[i - 1] = { counters[i], counts[i] }
    end
    local all = args.all == '1' and redis.call('HGETALL', keys.heartbeats) or {}
    return { server, counts[1], redis.call('HLEN', keys.heartbeats), all, watched }
  end,
}
