-- Model hosts, as the replicas reported them.

-- How long after a host was full only its slots in use count for estimates.
local DOUBTFUL_MS = 5000
-- How long a host's virtual time outlives its last report.
local HOST_SECONDS = 3600

-- Returns all hosts, sorted by name. Their other fields are read on demand, by host_field.
local function read_hosts(base, now)
  local hosts = {}
  local names = redis.call('SMEMBERS', hosts_key(base))
  table.sort(names)
  for i, name in ipairs(names) do
    local key = host_key(base, name)
    local fields = redis.call('HMGET', key, 'slots', 'time', 'turn_ms', 'full')
    local full = tonumber(fields[4]) or 0
    local held = held_key(base, name)
    hosts[i] = {
      name = name, key = key, held = held,
      slots = tonumber(fields[1]) or 0, time = tonumber(fields[2]) or 0,
      turn_ms = tonumber(fields[3]), full = full > now, doubtful = full > now - DOUBTFUL_MS,
      used = redis.call('HLEN', held), fields = {},
    }
  end
  return hosts
end

-- Returns a field of a host, and reads it at most once.
local function host_field(host, field)
  if host.fields[field] == nil then
    host.fields[field] = redis.call('HGET', host.key, field)
  end
  return host.fields[field]
end

-- Returns loaded or stored where the host has the model, otherwise false.
local function has(host, model)
  return host_field(host, 'has:' .. model)
end

-- Whether the host has a free slot.
local function is_free(host)
  return host.used < host.slots and not host.full
end

-- Whether any free host passes the test; without a test, whether any host is free.
local function any_free(hosts, test)
  for _, host in ipairs(hosts) do
    if is_free(host) and (not test or test(host)) then
      return true
    end
  end
  return false
end

-- Whether the replica can reach the host, and the host has the model.
local function serves(host, model, replica)
  local via = host_field(host, 'via:' .. replica)
  return (via == 'open' or via == 'trial') and has(host, model)
end

-- Whether the host can serve the ticket now.
local function suits(host, ticket, now)
  return serves(host, ticket.model, ticket.replica)
    and (tonumber(ticket['not:' .. host.name]) or 0) <= now
end

-- Returns the host of this name where it is free and can serve the ticket now, or nil.
local function usable_host(hosts, name, ticket, now)
  for _, host in ipairs(hosts) do
    if host.name == name and is_free(host) and suits(host, ticket, now) then
      return host
    end
  end
end

-- Replaces a replica's report of the hosts.
local function report_hosts(base, replica, reported)
  local named = {}
  for _, seen in ipairs(reported) do
    local key = host_key(base, seen.name)
    named[seen.name] = true
    redis.call('SADD', hosts_key(base), seen.name)
    redis.call('PERSIST', key)
    redis.call('HSET', key, 'slots', seen.slots, 'via:' .. replica, seen.via)
    -- A replica that cannot reach a host has no news of its models.
    if seen.via ~= 'shut' then
      for _, field in ipairs(redis.call('HKEYS', key)) do
        local model = string.match(field, '^has:(.*)$')
        if model and seen.models[model] == nil then
          redis.call('HDEL', key, field)
        end
      end
      for model, loaded in pairs(seen.models) do
        redis.call('HSET', key, 'has:' .. model, loaded and 'loaded' or 'stored')
      end
    end
  end
  for _, name in ipairs(redis.call('SMEMBERS', hosts_key(base))) do
    local key = host_key(base, name)
    if not named[name] and redis.call('HDEL', key, 'via:' .. replica) == 1 then
      local seen = false
      for _, field in ipairs(redis.call('HKEYS', key)) do
        seen = seen or string.sub(field, 1, 4) == 'via:'
      end
      if not seen then
        redis.call('SREM', hosts_key(base), name)
        redis.call('EXPIRE', key, HOST_SECONDS)
      end
    end
  end
end

-- Returns the first round, from this one on, in which a wider network has room for one more ticket
-- in addition to those that were granted there and those that wait for it. The rounds before it are full, and
-- the number of those is looked for in steps that double and then halve.
local function first_with_room(base, network, from)
  local waiting, granted = source_key(base, network.name), math.max(network.finish - from, 0)
  local function are_full(rounds)
    local count = redis.call('ZCOUNT', waiting, from, '(' .. from + rounds)
    return count + granted * network.width >= rounds * network.places
  end
  local full, beyond = 0, 1
  while are_full(beyond) do
    full, beyond = beyond, 2 * beyond
  end
  while beyond - full > 1 do
    local middle = (full + beyond) / 2
    if are_full(middle) then
      full = middle
    else
      beyond = middle
    end
  end
  return from + full
end

-- Returns the start of a new ticket, which these arguments describe, of a user with this finish: the
-- first round in which each wider network around it has room.
local function fair_start(base, hosts, args, finish)
  local start = finish
  for _, host in ipairs(hosts) do
    if host.time > start and has(host, args.model) then
      start = host.time
    end
  end
  local networks = wider_networks(args)
  local is_first = #networks > 0 and redis.call('ZCARD', source_key(base, args.source)) == 0
  for _, network in ipairs(networks) do
    network.finish = finish_of(base, network.name)
    network.places = is_first and network.width + 1 or network.width
    start = math.max(start, math.floor(network.finish))
  end
  repeat
    local before = start
    for _, network in ipairs(networks) do
      start = first_with_room(base, network, start)
    end
  until start == before
  return start
end
