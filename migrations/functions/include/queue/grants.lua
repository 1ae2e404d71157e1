-- Slots are granted.

-- Tickets of a replica that are looked at for a host which those before them failed on.
local LOOK = 64
-- How long a prompt may be expected in a host's cache.
local RAN_SECONDS = 600

local function hold_slot(base, ticket, host, now)
  redis.call('HSET', host.held, ticket.generation, now)
  redis.call('HSET', ticket.key, 'host', host.name, 'since', now)
  ticket.grants = redis.call('HINCRBY', ticket.key, 'grants', 1)
  ticket.host = host.name
  redis.call('HSET', base .. ':replica:' .. ticket.replica, ticket.generation, host.name)
  host.used = host.used + 1
end

-- A start is granted: the host's virtual time is no earlier from now on.
local function advance_time(host, start)
  if start > host.time then
    host.time = start
    redis.call('HSET', host.key, 'time', start)
  end
end

local function grant(base, ticket, host, now, asking)
  leave_queue(base, ticket)
  hold_slot(base, ticket, host, now)
  advance_time(host, tonumber(ticket.start))
  if host_field(host, 'via:' .. ticket.replica) == 'trial' then
    -- One trial, until its replica reports what came of it.
    host.fields['via:' .. ticket.replica] = 'shut'
    redis.call('HSET', host.key, 'via:' .. ticket.replica, 'shut')
  end
  redis.call('SET', base .. ':ran:' .. ticket.session, host.name, 'EX', RAN_SECONDS)
  if ticket.generation ~= asking then
    redis.call('SPUBLISH', base .. ':replica:' .. ticket.replica,
      ticket.generation .. ' ' .. ticket.grants .. ' ' .. host.name)
  end
end

-- Among free hosts: has the model loaded, ran this session last, has the smallest share in use.
local function best_host(base, hosts, ticket, now)
  local ran = redis.call('GET', base .. ':ran:' .. ticket.session)
  local best, best_rank
  for _, host in ipairs(hosts) do
    if is_free(host) and suits(host, ticket, now) then
      local rank = (has(host, ticket.model) == 'loaded' and 4 or 0)
        + (host.name == ran and 2 or 0) - host.used / host.slots
      if not best or rank > best_rank then
        best, best_rank = host, rank
      end
    end
  end
  return best
end

-- The first ticket of a line that some free host suits.
local function first_of_line(base, hosts, line, now)
  local from, to = 0, 0
  while from < LOOK do
    local found = redis.call('ZRANGE', line, from, to)
    for _, generation in ipairs(found) do
      local ticket = read_ticket(base, generation)
      local function suits_ticket(host)
        return suits(host, ticket, now)
      end
      if some_free(hosts, suits_ticket) then
        return ticket
      end
    end
    if #found < to - from + 1 then
      return nil
    end
    from, to = to + 1, math.min(2 * to + 7, LOOK - 1)
  end
  return nil
end

-- The first ticket of a model that some free host suits. A line is of one replica, so that tickets
-- whose replica cannot reach a host, however many, hold up no other.
local function first_served(base, hosts, model, now)
  local function has_model(host)
    return has(host, model)
  end
  if not some_free(hosts, has_model) then
    return nil
  end
  local lines = {}
  for _, replica in ipairs(redis.call('SMEMBERS', base .. ':lines:' .. model)) do
    local function serves_it(host)
      return serves(host, model, replica)
    end
    if some_free(hosts, serves_it) then
      local line = line_of(base, replica, model)
      local head = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
      lines[#lines + 1] = { line = line, score = tonumber(head[2]) }
    end
  end
  table.sort(lines, function(a, b)
    return a.score < b.score
  end)
  local best
  for _, line in ipairs(lines) do
    if best and tonumber(best.score) < line.score then
      break
    end
    local ticket = first_of_line(base, hosts, line.line, now)
    if ticket and (not best or tonumber(ticket.score) < tonumber(best.score)) then
      best = ticket
    end
  end
  return best
end

-- Gives every free slot to the first ticket that it suits. The ticket `asking` learns of its grant by
-- the reply, every other by its replica's channel.
local function dispatch(base, hosts, now, asking)
  if not some_free(hosts) then
    return
  end
  local first = {}
  for _, model in ipairs(waiting_models(base)) do
    first[#first + 1] = { model = model, ticket = first_served(base, hosts, model, now) }
  end
  while true do
    local best
    for _, candidate in ipairs(first) do
      if candidate.ticket and (not best
        or tonumber(candidate.ticket.score) < tonumber(best.ticket.score)) then
        best = candidate
      end
    end
    if not best then
      return
    end
    local host = best_host(base, hosts, best.ticket, now)
    if host then
      grant(base, best.ticket, host, now, asking)
    end
    -- Where no host is left for it, another of its model may still be served.
    best.ticket = first_served(base, hosts, best.model, now)
  end
end
