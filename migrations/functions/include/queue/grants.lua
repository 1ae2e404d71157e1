-- Grants of slots to tickets.

-- The number of tickets at the head of a line that are tried for the free hosts.
local TICKETS_TRIED = 64
-- How long a prompt is expected in a host's cache.
local RAN_SECONDS = 600

-- Records that a ticket holds a slot of a host.
local function hold_slot(base, ticket, host, now)
  redis.call('HSET', host.held, ticket.generation, now)
  redis.call('HSET', ticket.key, 'host', host.name, 'since', now)
  ticket.grants = redis.call('HINCRBY', ticket.key, 'grants', 1)
  if ticket.grants == 1 then
    charge_wider_networks(base, ticket)
  end
  ticket.host = host.name
  redis.call('HSET', replica_key(base, ticket.replica), ticket.generation, host.name)
  host.used = host.used + 1
  activate(base, ticket)
end

-- Advances the host's virtual time to a granted start.
local function advance_time(host, start)
  if start > host.time then
    host.time = start
    redis.call('HSET', host.key, 'time', start)
  end
end

-- Grants a slot to a waiting ticket, and publishes that unless `caller` is its generation.
local function grant(base, ticket, host, now, caller)
  leave_queue(base, ticket)
  hold_slot(base, ticket, host, now)
  advance_time(host, tonumber(ticket.start))
  if host_field(host, 'via:' .. ticket.replica) == 'trial' then
    -- A half-open breaker admits one trial, until its replica reports the result.
    host.fields['via:' .. ticket.replica] = 'shut'
    redis.call('HSET', host.key, 'via:' .. ticket.replica, 'shut')
  end
  redis.call('SET', ran_key(base, ticket.session), host.name, 'EX', RAN_SECONDS)
  local whole = string.match(ticket.prefixes or '', '%S+')
  if whole then
    redis.call('SET', ran_key(base, whole), host.name, 'EX', RAN_SECONDS)
  end
  if ticket.generation ~= caller then
    redis.call('SPUBLISH', replica_key(base, ticket.replica),
      ticket.generation .. ' ' .. ticket.grants .. ' ' .. host.name)
  end
end

-- Returns what each host's prompt cache is worth to a ticket. The host that ran the session last: 2,
-- and 8 for an answer with text, which is in its cache. A host that ran a beginning of a conversation
-- that came with the request: between 1 and 2, the more the longer that beginning.
local function worth_of_caches(base, ticket)
  local worth, tried = {}, 1
  for digest in string.gmatch(ticket.prefixes or '', '%S+') do
    local name = redis.call('GET', ran_key(base, digest))
    if name and not worth[name] then
      worth[name] = 1 + 1 / tried
    end
    tried = tried + 1
  end
  local ran = redis.call('GET', ran_key(base, ticket.session))
  if ran then
    worth[ran] = ticket.first == '1' and 8 or 2
  end
  return worth
end

-- Returns the best free host for a ticket, or nil. A loaded model counts most, then the host's prompt
-- cache, then the share in use; but the cache that has an answer's text counts most of all. A ticket
-- never waits for a cache while any host is free for it.
local function best_host(base, hosts, ticket, now)
  local worth = worth_of_caches(base, ticket)
  local best, best_rank
  for _, host in ipairs(hosts) do
    if is_free(host) and suits(host, ticket, now) then
      local rank = (has(host, ticket.model) == 'loaded' and 4 or 0) + (worth[host.name] or 0)
        - host.used / host.slots
      if not best or rank > best_rank then
        best, best_rank = host, rank
      end
    end
  end
  return best
end

-- Returns the first ticket of a line that a free host suits, or nil.
local function first_of_line(base, hosts, line, now)
  local from, to = 0, 0
  while from < TICKETS_TRIED do
    local found = redis.call('ZRANGE', line, from, to)
    for _, generation in ipairs(found) do
      local ticket = read_ticket(base, generation)
      local function suits_ticket(host)
        return suits(host, ticket, now)
      end
      if any_free(hosts, suits_ticket) then
        return ticket
      end
    end
    if #found < to - from + 1 then
      return nil
    end
    from, to = to + 1, math.min(2 * to + 7, TICKETS_TRIED - 1)
  end
  return nil
end

-- Returns the first ticket of a model that a free host suits, or nil. Each replica has its own
-- line, so that the tickets of a replica that cannot reach a host block no others.
local function first_served(base, hosts, model, now)
  local function has_model(host)
    return has(host, model)
  end
  if not any_free(hosts, has_model) then
    return nil
  end
  local lines = {}
  for _, replica in ipairs(redis.call('SMEMBERS', lines_key(base, model))) do
    local function serves_it(host)
      return serves(host, model, replica)
    end
    if any_free(hosts, serves_it) then
      local line = line_key(base, replica, model)
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

-- Grants every free slot to the first ticket that it suits. The ticket of the generation `caller`
-- learns of its grant by the reply, every other ticket by its replica's channel.
local function dispatch(base, hosts, now, caller)
  if not any_free(hosts) then
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
      grant(base, best.ticket, host, now, caller)
    end
    -- Where no host is left for this ticket, another one of its model may still be served.
    best.ticket = first_served(base, hosts, best.model, now)
  end
end
