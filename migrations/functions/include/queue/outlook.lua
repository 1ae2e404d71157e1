-- Estimates of a ticket's position, and of the time until its grant.

-- Returns the models that share hosts with a model, when the slots of its hosts become free, and
-- how fast they do.
local function outlook(base, hosts, models, model, replica, now)
  local view = { models = { model }, ends = {}, round_ms = nil, hosts = 0 }
  local known, sum = 0, 0
  for _, host in ipairs(hosts) do
    if host.turn_ms then
      known, sum = known + 1, sum + host.turn_ms
    end
  end
  local shares, rate = {}, 0
  for _, host in ipairs(hosts) do
    if has(host, model) and (host_field(host, 'via:' .. replica) or 'shut') ~= 'shut' then
      view.hosts = view.hosts + 1
      for _, other in ipairs(models) do
        if other ~= model and not shares[other] and has(host, other) then
          shares[other] = true
          view.models[#view.models + 1] = other
        end
      end
      local turn_ms = host.turn_ms or (known > 0 and sum / known)
      -- A host that was full has the slots in use, and no others.
      local slots = host.doubtful and math.min(host.used, host.slots) or host.slots
      if turn_ms then
        rate = rate + slots / math.max(turn_ms, 1)
        local since = redis.call('HVALS', host.held)
        for i = 1, slots do
          local ends = since[i] and since[i] + turn_ms - now or 0
          view.ends[#view.ends + 1] = math.max(ends, 0)
        end
      end
    end
  end
  table.sort(view.ends)
  if rate > 0 then
    view.round_ms = #view.ends / rate
  end
  return view
end

-- Returns the time until the ticket at a position gets a slot, or -1 where none was measured.
local function eta_ms(view, position)
  if not view.round_ms then
    return -1
  end
  local slots = #view.ends
  local rounds = math.floor((position - 1) / slots)
  return math.floor(view.ends[(position - 1) % slots + 1] + rounds * view.round_ms)
end

-- Returns how long a ticket that finds the queue full has to wait, or -1. Each refused ticket gets
-- the time of the next room that was promised to no other, so that not all retry for the same one;
-- at most the time until all tickets that wait now have left.
local function promise_room(base, view, limit, now)
  if not view.round_ms then
    return -1
  end
  local key = promised_key(base)
  local next_ms = (tonumber(redis.call('GET', key)) or 0) + view.round_ms / #view.ends - now
  local after_ms = math.max(eta_ms(view, 1), math.min(math.floor(next_ms), eta_ms(view, limit)))
  redis.call('SET', key, string.format('%.17g', now + after_ms), 'PX', after_ms + 1)
  return after_ms
end

-- Returns the position of a score, from 1.
local function position(base, view, of_score)
  local before = 0
  for _, model in ipairs(view.models) do
    before = before + redis.call('ZCOUNT', model_key(base, model), '-inf', '(' .. of_score)
  end
  return before + 1
end

-- Returns the time until the first waiting ticket of a network leaves the queue, or -1.
local function network_eta_ms(base, hosts, models, network, replica, now)
  local first = redis.call('ZRANGE', source_key(base, network), 0, 0)[1]
  local ticket = redis.call('HMGET', ticket_key(base, first), 'model', 'score')
  local view = outlook(base, hosts, models, ticket[1], replica, now)
  return eta_ms(view, position(base, view, ticket[2]))
end

-- Returns the status of a ticket, as queue_join replies it.
local function status_of(base, hosts, ticket, now)
  if ticket.host then
    return { 'granted', ticket.host, tonumber(ticket.grants), ticket.start }
  end
  local view = outlook(base, hosts, waiting_models(base), ticket.model, ticket.replica, now)
  local at = position(base, view, ticket.score)
  return { 'waiting', at, eta_ms(view, at), ticket.start, view.hosts }
end
