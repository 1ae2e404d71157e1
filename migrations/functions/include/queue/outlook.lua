-- What a ticket's replica is told: its position, and the time until its turn.

-- Which models are served before or beside one, when its hosts come free, and how fast they do.
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
      -- One that says it is full has the slots that we use, and no others.
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

local function eta_ms(view, position)
  if not view.round_ms then
    return -1
  end
  local slots = #view.ends
  local rounds = math.floor((position - 1) / slots)
  return math.floor(view.ends[(position - 1) % slots + 1] + rounds * view.round_ms)
end

-- How long a ticket that finds the queue full has to wait, or -1. Each refused ticket is told of the
-- next room that no other was told of, so that not all come back for the same one; at most until the
-- tickets that wait now have left.
local function promise_room(base, view, limit, now)
  if not view.round_ms then
    return -1
  end
  local key = base .. ':promised'
  local next_ms = (tonumber(redis.call('GET', key)) or 0) + view.round_ms / #view.ends - now
  local after_ms = math.max(eta_ms(view, 1), math.min(math.floor(next_ms), eta_ms(view, limit)))
  redis.call('SET', key, string.format('%.17g', now + after_ms), 'PX', after_ms + 1)
  return after_ms
end

local function position(base, view, of_score)
  local before = 0
  for _, model in ipairs(view.models) do
    before = before + redis.call('ZCOUNT', base .. ':model:' .. model, '-inf', '(' .. of_score)
  end
  return before + 1
end

-- When the first waiting ticket of a source leaves the queue.
local function source_eta_ms(base, hosts, models, source, replica, now)
  local first = redis.call('ZRANGE', base .. ':source:' .. source, 0, 0)[1]
  local ticket = redis.call('HMGET', base .. ':ticket:' .. first, 'model', 'score')
  local view = outlook(base, hosts, models, ticket[1], replica, now)
  return eta_ms(view, position(base, view, ticket[2]))
end

-- The status of a ticket, as replies have it.
local function status_of(base, hosts, ticket, now)
  if ticket.host then
    return { 'granted', ticket.host, tonumber(ticket.grants), ticket.start }
  end
  local view = outlook(base, hosts, waiting_models(base), ticket.model, ticket.replica, now)
  local at = position(base, view, ticket.score)
  return { 'waiting', at, eta_ms(view, at), ticket.start, view.hosts }
end
