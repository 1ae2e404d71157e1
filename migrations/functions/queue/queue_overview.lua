-- Returns the fleet at one moment: replicas, hosts and what waits, for somebody who looks at it. It only
-- reads. Entries beyond its bounds are counted and left out.
--
-- Keys:       queue
--             heartbeats, figures, gone   of the replicas, as heartbeat and remove_replica have them
-- Arguments:  none
-- Reply:      now        the time of Redis in milliseconds
--             replicas   their number, then name, counter and figures of each
--             gone       of each replica that went lately its name, and what is noted of it
--             hosts      their number, then of each name, slots, slots in use, mean duration of a turn in
--                        milliseconds or empty, the replicas for which it is open, on trial and shut, and
--                        the list of its models: loaded or stored, and the name
--             models     the number of those that turns wait for, then of each name, waiting turns and
--                        since when the first of them waits
-- Called by:  Overview::read

-- Entries that one call lists, at most.
local REPLICAS, HOSTS, MODELS, MODELS_OF_HOST = 200, 100, 64, 16
-- The fields of hosts that one call reads, approximately: each replica and each model has one at each
-- host. Of the hosts beyond them only the slots are listed.
local FIELDS = 2000

-- Returns a hash as a table, and the number of its fields.
local function read_hash(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields, #flat / 2
end

-- Returns the names in a table, sorted.
local function sorted_names(of)
  local names = {}
  for name in pairs(of) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function list_replicas(counters, figures)
  local names = sorted_names(counters)
  local list = { #names }
  for i = 1, math.min(#names, REPLICAS) do
    list[#list + 1] = names[i]
    list[#list + 1] = counters[names[i]]
    list[#list + 1] = figures[names[i]] or ''
  end
  return list
end

-- Describes a host, as those replicas report it that have a heartbeat; or only its slots. Returns the
-- description, and the number of fields that were read.
local function describe_host(base, name, counters, is_brief)
  local key, fields, count = host_key(base, name), nil, 1
  if is_brief then
    fields = { slots = redis.call('HGET', key, 'slots') or nil }
  else
    fields, count = read_hash(key)
  end
  local seen, models = { open = 0, trial = 0, shut = 0 }, {}
  for field, value in pairs(fields) do
    local kind, of = string.match(field, '^(%a+):(.*)$')
    if kind == 'via' and tonumber(counters[of] or -1) >= 0 then
      seen[value] = (seen[value] or 0) + 1
    elseif kind == 'has' then
      models[#models + 1] = value .. ' ' .. of
    end
  end
  -- Those in memory come first.
  table.sort(models)
  for i = #models, MODELS_OF_HOST + 1, -1 do
    models[i] = nil
  end
  local used = tostring(redis.call('HLEN', held_key(base, name)))
  return { name, fields.slots or '0', used, fields.turn_ms or '', seen.open, seen.trial, seen.shut,
    models }, count
end

local function list_hosts(base, counters)
  local names = redis.call('SMEMBERS', hosts_key(base))
  table.sort(names)
  local list, read = { #names }, 0
  for i = 1, math.min(#names, HOSTS) do
    local host, count = describe_host(base, names[i], counters, read > FIELDS)
    list[i + 1], read = host, read + count
  end
  return list
end

local function list_models(base)
  local models = waiting_models(base)
  local list = { #models }
  for i = 1, math.min(#models, MODELS) do
    local first = redis.call('ZRANGE', waits_key(base, models[i]), 0, 0, 'WITHSCORES')
    list[#list + 1] = models[i]
    list[#list + 1] = redis.call('ZCARD', model_key(base, models[i]))
    list[#list + 1] = first[2] or ''
  end
  return list
end

register {
  name = 'queue_overview',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'queue', 'heartbeats', 'figures', 'gone' },
  arguments = {},
  run = function(keys)
    local base, counters = keys.queue, read_hash(keys.heartbeats)
    return {
      now_ms(),
      list_replicas(counters, (read_hash(keys.figures))),
      redis.call('HGETALL', keys.gone),
      list_hosts(base, counters),
      list_models(base),
    }
  end,
}
