-- The queue: whose turn it is on which host. Oldest supported binary: 0.1.0
--
-- Start-time fair queueing: a ticket's start is the greatest of its hosts' virtual time (the start
-- last granted there) and its user's finish; the lowest start goes first, then who came first. What
-- has text already goes before all.
--
-- A slot is held by a generation, and a generation is in the name of a replica: capacity is what is
-- held, and no number is kept of it.
--
-- KEYS: 1 the queue's name. Every key begins with it, and so lies in its slot:
--   :beats                  replica → heartbeat (0002)
--   :ticket:<generation>    hash: user, source, model, session, start, score, first, grants,
--                           replica (none: parked until somebody takes it over), host and since
--                           while it holds a slot, not:<host> → until when
--   :model:<model>          sorted set: waiting generations by score
--   :line:<replica>:<model> the same, of one replica
--   :lines:<model>          set: the replicas that wait for it
--   :models                 set: the models that are waited for
--   :users                  sorted set: users by finish
--   :source:<source>        sorted set: waiting generations by score
--   :replica:<replica>      hash: generation → host, '' while it waits
--   :host:<host>            hash: slots, time (virtual), turn_ms (mean), full (until when),
--                           has:<model> → loaded | stored, via:<replica> → open | trial | shut
--   :hosts                  set
--   :held:<host>            hash: generation → since when
--   :ran:<session>          the host whose prompt cache has it
--   :reports                hash: replica → digest of the host table that it reported
--   :arrivals               counts those who came
--   :promised               when there is room for whoever was refused last
-- and the channel of a replica's grants, :replica:<replica>. Times are Redis's, in milliseconds.

-- Arrivals that are told apart among equal starts: 24 bits of a score, which leaves 29 for starts.
local ARRIVALS = 16777216
-- Tickets of a replica that are looked at for a host which those before them failed on.
local LOOK = 64
-- How long a host that said it was full is not reckoned with for more than it does.
local DOUBT_MS = 5000
-- Users whose finishes are kept, the greatest.
local USERS = 20000
-- How long a ticket without a replica keeps its place.
local PARKED_SECONDS = 600
-- How long a prompt may be expected in a host's cache.
local RAN_SECONDS = 600
-- How long a host's virtual time outlives its last report.
local HOST_SECONDS = 3600
-- Weight of the newest turn in the mean.
local NEWEST = 0.2
-- Holdings of a replica that one call frees, and about as many as one call reads.
local FREED_AT_ONCE = 50
local SCANNED_AT_ONCE = 250

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function read(base, generation)
  local flat = redis.call('HGETALL', base .. ':ticket:' .. generation)
  if #flat == 0 then
    return nil
  end
  local ticket = { generation = generation, key = base .. ':ticket:' .. generation }
  for i = 1, #flat, 2 do
    ticket[flat[i]] = flat[i + 1]
  end
  return ticket
end

-- Hosts

local function read_hosts(base, now)
  local hosts = {}
  local names = redis.call('SMEMBERS', base .. ':hosts')
  table.sort(names)
  for i, name in ipairs(names) do
    local key = base .. ':host:' .. name
    local fields = redis.call('HMGET', key, 'slots', 'time', 'turn_ms', 'full')
    local full = tonumber(fields[4]) or 0
    local held = base .. ':held:' .. name
    hosts[i] = {
      name = name, key = key, held = held,
      slots = tonumber(fields[1]) or 0, time = tonumber(fields[2]) or 0,
      turn_ms = tonumber(fields[3]), full = full > now, doubtful = full > now - DOUBT_MS,
      used = redis.call('HLEN', held), fields = {},
    }
  end
  return hosts
end

local function host_field(host, field)
  if host.fields[field] == nil then
    host.fields[field] = redis.call('HGET', host.key, field)
  end
  return host.fields[field]
end

local function has(host, model)
  return host_field(host, 'has:' .. model)
end

local function is_free(host)
  return host.used < host.slots and not host.full
end

-- Whether any free host passes the test, or where there is none, whether any is free.
local function some_free(hosts, test)
  for _, host in ipairs(hosts) do
    if is_free(host) and (not test or test(host)) then
      return true
    end
  end
  return false
end

local function serves(host, model, replica)
  local via = host_field(host, 'via:' .. replica)
  return (via == 'open' or via == 'trial') and has(host, model)
end

-- Whether the ticket's replica may use the host for it now.
local function suits(host, ticket, now)
  return serves(host, ticket.model, ticket.replica)
    and (tonumber(ticket['not:' .. host.name]) or 0) <= now
end

-- Places

local function line_of(base, replica, model)
  return base .. ':line:' .. replica .. ':' .. model
end

local function enter(base, ticket)
  local line = line_of(base, ticket.replica, ticket.model)
  redis.call('ZADD', line, ticket.score, ticket.generation)
  redis.call('SADD', base .. ':lines:' .. ticket.model, ticket.replica)
  redis.call('ZADD', base .. ':model:' .. ticket.model, ticket.score, ticket.generation)
  redis.call('SADD', base .. ':models', ticket.model)
  redis.call('ZADD', base .. ':source:' .. ticket.source, ticket.score, ticket.generation)
  redis.call('HSET', base .. ':replica:' .. ticket.replica, ticket.generation, '')
end

local function stop_waiting(base, ticket)
  local line = line_of(base, ticket.replica, ticket.model)
  redis.call('ZREM', line, ticket.generation)
  if redis.call('EXISTS', line) == 0 then
    redis.call('SREM', base .. ':lines:' .. ticket.model, ticket.replica)
  end
  local waiting = base .. ':model:' .. ticket.model
  redis.call('ZREM', waiting, ticket.generation)
  if redis.call('EXISTS', waiting) == 0 then
    redis.call('SREM', base .. ':models', ticket.model)
  end
  redis.call('ZREM', base .. ':source:' .. ticket.source, ticket.generation)
end

-- Gives up the slot or the place; the ticket itself stays.
local function take_out(base, ticket)
  if ticket.host then
    redis.call('HDEL', base .. ':held:' .. ticket.host, ticket.generation)
    redis.call('HDEL', ticket.key, 'host', 'since')
    ticket.host = nil
  elseif ticket.replica then
    stop_waiting(base, ticket)
  end
  if ticket.replica then
    redis.call('HDEL', base .. ':replica:' .. ticket.replica, ticket.generation)
  end
end

local function score(base, start, first)
  local arrival = (redis.call('INCR', base .. ':arrivals') % ARRIVALS) / ARRIVALS
  return string.format('%.17g', first and arrival - 1 or start + arrival)
end

local function charge(base, user, start)
  local users = base .. ':users'
  redis.call('ZADD', users, 'GT', start + 1, user)
  local beyond = redis.call('ZCARD', users) - USERS
  if beyond > 0 then
    redis.call('ZREMRANGEBYRANK', users, 0, beyond - 1)
  end
end

local function fair_start(base, hosts, user, model)
  local start = tonumber(redis.call('ZSCORE', base .. ':users', user)) or 0
  for _, host in ipairs(hosts) do
    if host.time > start and has(host, model) then
      start = host.time
    end
  end
  return start
end

local function waiting_models(base)
  local models = redis.call('SMEMBERS', base .. ':models')
  table.sort(models)
  return models
end

-- Grants

local function hold(base, ticket, host, now)
  redis.call('HSET', host.held, ticket.generation, now)
  redis.call('HSET', ticket.key, 'host', host.name, 'since', now)
  ticket.grants = redis.call('HINCRBY', ticket.key, 'grants', 1)
  ticket.host = host.name
  redis.call('HSET', base .. ':replica:' .. ticket.replica, ticket.generation, host.name)
  host.used = host.used + 1
end

-- A start is granted: the host's virtual time is no earlier from now on.
local function pass(host, start)
  if start > host.time then
    host.time = start
    redis.call('HSET', host.key, 'time', start)
  end
end

local function grant(base, ticket, host, now, asking)
  stop_waiting(base, ticket)
  hold(base, ticket, host, now)
  pass(host, tonumber(ticket.start))
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
      local ticket = read(base, generation)
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

-- The first ticket of a model that some free host suits. A line is of one replica, so that those who
-- cannot reach a host, however many, stand in nobody's way.
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

-- Gives every free slot to the first ticket that it suits. `asking` learns of its own by the reply.
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

-- What a waiting ticket is told

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

-- How long one who finds the queue full has to wait, or -1: each is told of the next room that nobody
-- was told of, so that not all come back for the same. None is told of more than all who wait leave.
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

local function count_waiting(base, models)
  local waiting = 0
  for _, model in ipairs(models) do
    waiting = waiting + redis.call('ZCARD', base .. ':model:' .. model)
  end
  return waiting
end

-- When the first waiting ticket of a source leaves the queue.
local function source_eta_ms(base, hosts, models, source, replica, now)
  local first = redis.call('ZRANGE', base .. ':source:' .. source, 0, 0)[1]
  local ticket = redis.call('HMGET', base .. ':ticket:' .. first, 'model', 'score')
  local view = outlook(base, hosts, models, ticket[1], replica, now)
  return eta_ms(view, position(base, view, ticket[2]))
end

local function told(base, hosts, ticket, now)
  if ticket.host then
    return { 'granted', ticket.host, tonumber(ticket.grants), ticket.start }
  end
  local view = outlook(base, hosts, waiting_models(base), ticket.model, ticket.replica, now)
  local place = position(base, view, ticket.score)
  return { 'waiting', place, eta_ms(view, place), ticket.start, view.hosts }
end

-- Functions

-- generation, replica, user, source, model, session, '1' where it has text, a start that it had
-- and Redis forgot or '', most waiting, most waiting of one source
-- → granted <host> <grant> <start> | waiting <position> <eta ms or -1> <start> <hosts of the model within reach>
-- | full <ms until there is room, or -1> | crowded <the same> | gone
local function join(keys, args)
  local base, now = keys[1], now_ms()
  local generation, replica, user, source, model = args[1], args[2], args[3], args[4], args[5]
  local first = args[7] == '1'
  local hosts = read_hosts(base, now)
  local ticket = read(base, generation)
  if ticket and ticket.replica == replica and (ticket.host or not first or ticket.first == '1') then
    dispatch(base, hosts, now, generation)
    return told(base, hosts, read(base, generation), now)
  end
  if ticket and ticket.replica and ticket.replica ~= replica and args[8] ~= '' then
    -- It was taken over while this replica did not answer.
    return { 'gone' }
  end
  if ticket then
    -- Another replica goes on with it, or it has text now: the same place, or a better one.
    local holds = ticket.host
    take_out(base, ticket)
    ticket.replica = replica
    if first and ticket.first ~= '1' then
      ticket.first, ticket.score = '1', score(base, 0, true)
    end
    redis.call('PERSIST', ticket.key)
    redis.call('HSET', ticket.key, 'replica', replica, 'first', ticket.first,
      'score', ticket.score)
    if holds then
      hosts = read_hosts(base, now)
    end
  else
    -- What has text was let in once, and goes on.
    if args[8] == '' and not first then
      local models = waiting_models(base)
      if count_waiting(base, models) >= tonumber(args[9]) then
        local view = outlook(base, hosts, models, model, replica, now)
        return { 'full', promise_room(base, view, tonumber(args[9]), now) }
      end
      if source ~= '' and redis.call('ZCARD', base .. ':source:' .. source) >= tonumber(args[10])
      then
        return { 'crowded', source_eta_ms(base, hosts, models, source, replica, now) }
      end
    end
    local start = tonumber(args[8]) or fair_start(base, hosts, user, model)
    charge(base, user, start)
    ticket = {
      key = base .. ':ticket:' .. generation, generation = generation, replica = replica,
      user = user, source = source, model = model, session = args[6],
      start = string.format('%.17g', start), first = first and '1' or '0', grants = 0,
    }
    ticket.score = score(base, start, first)
    redis.call('HSET', ticket.key, 'replica', replica, 'user', user, 'source', source,
      'model', model, 'session', ticket.session, 'start', ticket.start, 'first', ticket.first,
      'score', ticket.score)
  end
  enter(base, ticket)
  dispatch(base, hosts, now, generation)
  return told(base, hosts, read(base, generation), now)
end

-- generation, replica, host, grant, '1' where it has text, ms for which the host is not for this
-- ticket, ms for which the host is full: the slot is of no use, the place is kept
-- → as join | gone
local function give_back(keys, args)
  local base, now = keys[1], now_ms()
  local ticket = read(base, args[1])
  if not ticket or ticket.replica ~= args[2] then
    return { 'gone' }
  end
  if ticket.host == args[3] and ticket.grants == args[4] then
    take_out(base, ticket)
    if args[5] == '1' and ticket.first ~= '1' then
      ticket.first, ticket.score = '1', score(base, 0, true)
      redis.call('HSET', ticket.key, 'first', '1', 'score', ticket.score)
    end
    redis.call('HSET', ticket.key, 'not:' .. args[3], now + tonumber(args[6]))
    if tonumber(args[7]) > 0 then
      redis.call('HSET', base .. ':host:' .. args[3], 'full', now + tonumber(args[7]))
    end
    enter(base, ticket)
  end
  local hosts = read_hosts(base, now)
  dispatch(base, hosts, now, args[1])
  return told(base, hosts, read(base, args[1]), now)
end

-- generation, replica → ok | gone
local function release(keys, args)
  local base, now = keys[1], now_ms()
  local ticket = read(base, args[1])
  if not ticket or ticket.replica ~= args[2] then
    redis.call('HDEL', base .. ':replica:' .. args[2], args[1])
    return 'gone'
  end
  if ticket.host then
    local key = base .. ':host:' .. ticket.host
    local took = now - tonumber(ticket.since)
    local mean = tonumber(redis.call('HGET', key, 'turn_ms')) or took
    redis.call('HSET', key, 'turn_ms', mean + (took - mean) * NEWEST)
  elseif ticket.grants == nil then
    -- It never ran: the user is not charged, where nothing was reckoned after it.
    local finish = tonumber(redis.call('ZSCORE', base .. ':users', ticket.user))
    if finish == tonumber(ticket.start) + 1 then
      redis.call('ZADD', base .. ':users', ticket.start, ticket.user)
    end
  end
  take_out(base, ticket)
  redis.call('DEL', ticket.key)
  dispatch(base, read_hosts(base, now), now)
  return 'ok'
end

-- generation, replica, host, user, source, model, session, start: a slot that is in use and that
-- Redis forgot → its grant | gone
local function restore(keys, args)
  local base, now = keys[1], now_ms()
  local ticket = read(base, args[1])
  if ticket and ticket.replica and ticket.replica ~= args[2] then
    return 'gone'
  end
  if ticket and ticket.host == args[3] then
    return ticket.grants
  end
  if ticket then
    take_out(base, ticket)
    redis.call('PERSIST', ticket.key)
  else
    ticket = { key = base .. ':ticket:' .. args[1], generation = args[1] }
    redis.call('HSET', ticket.key, 'user', args[4], 'source', args[5], 'model', args[6],
      'session', args[7], 'start', tonumber(args[8]) or 0, 'first', '1', 'score', '-1')
  end
  redis.call('HSET', ticket.key, 'replica', args[2])
  ticket.replica = args[2]
  -- What was reckoned before may be forgotten with it, and who comes now would start before those
  -- who waited.
  local start, key = tonumber(args[8]) or 0, base .. ':host:' .. args[3]
  charge(base, args[4], start)
  pass({ key = key, time = tonumber(redis.call('HGET', key, 'time')) or 0 }, start)
  hold(base, ticket, { name = args[3], held = base .. ':held:' .. args[3], used = 0 }, now)
  return tostring(ticket.grants)
end

-- replica, digest, JSON [{name, slots, via, models: {name: loaded}}]: what the replica sees of the
-- hosts
local function report(keys, args)
  local base, now, replica = keys[1], now_ms(), args[1]
  local named = {}
  for _, seen in ipairs(cjson.decode(args[3])) do
    local key = base .. ':host:' .. seen.name
    named[seen.name] = true
    redis.call('SADD', base .. ':hosts', seen.name)
    redis.call('PERSIST', key)
    redis.call('HSET', key, 'slots', seen.slots, 'via:' .. replica, seen.via)
    -- Who cannot reach a host knows nothing new of its models.
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
  for _, name in ipairs(redis.call('SMEMBERS', base .. ':hosts')) do
    local key = base .. ':host:' .. name
    if not named[name] and redis.call('HDEL', key, 'via:' .. replica) == 1 then
      local seen = false
      for _, field in ipairs(redis.call('HKEYS', key)) do
        seen = seen or string.sub(field, 1, 4) == 'via:'
      end
      if not seen then
        redis.call('SREM', base .. ':hosts', name)
        redis.call('EXPIRE', key, HOST_SECONDS)
      end
    end
  end
  redis.call('HSET', base .. ':reports', replica, args[2])
  dispatch(base, read_hosts(base, now), now)
  return 'ok'
end

-- replica → digest of its last report or '', holdings of this replica, tickets that wait, then host,
-- slots, used of each host
local function tick(keys, args)
  local base, now = keys[1], now_ms()
  local hosts = read_hosts(base, now)
  dispatch(base, hosts, now)
  local reply = {
    redis.call('HGET', base .. ':reports', args[1]) or '',
    tostring(redis.call('HLEN', base .. ':replica:' .. args[1])),
    tostring(count_waiting(base, waiting_models(base))),
  }
  for _, host in ipairs(hosts) do
    reply[#reply + 1] = host.name
    reply[#reply + 1] = tostring(host.slots)
    reply[#reply + 1] = tostring(host.used)
  end
  return reply
end

-- replica, generation, … → for each as join, or gone
local function places(keys, args)
  local base, now = keys[1], now_ms()
  local hosts, models, views, reply = read_hosts(base, now), waiting_models(base), {}, {}
  for i = 2, #args do
    local found = redis.call('HMGET', base .. ':ticket:' .. args[i], 'replica', 'host', 'grants',
      'start', 'model', 'score')
    if found[1] ~= args[1] then
      reply[i - 1] = { 'gone' }
    elseif found[2] then
      reply[i - 1] = { 'granted', found[2], tonumber(found[3]), found[4] }
    else
      local model = found[5]
      views[model] = views[model] or outlook(base, hosts, models, model, args[1], now)
      local place = position(base, views[model], found[6])
      reply[i - 1] = { 'waiting', place, eta_ms(views[model], place), found[4], views[model].hosts }
    end
  end
  return reply
end

-- replica, model, most waiting → room | full <ms until there is some, or -1>
local function room(keys, args)
  local base, now = keys[1], now_ms()
  local models = waiting_models(base)
  if count_waiting(base, models) < tonumber(args[3]) then
    return { 'room' }
  end
  local view = outlook(base, read_hosts(base, now), models, args[2], args[1], now)
  return { 'full', tostring(promise_room(base, view, tonumber(args[3]), now)) }
end

-- replica, where to go on ('0' at first) → where to go on ('0' at the end), some of the generations
-- in its name, of which some may come twice
local function holdings(keys, args)
  local scan = redis.call('HSCAN', keys[1] .. ':replica:' .. args[1], args[2], 'COUNT', SCANNED_AT_ONCE)
  local reply = { scan[1] }
  for i = 1, #scan[2], 2 do
    reply[#reply + 1] = scan[2][i]
  end
  return reply
end

-- Some fields of a hash, none only where it has none. A large hash is not read as a whole.
local function some_fields(key)
  local from, fields = '0', {}
  repeat
    local scan = redis.call('HSCAN', key, from, 'COUNT', FREED_AT_ONCE)
    for i = 1, #scan[2], 2 do
      fields[#fields + 1] = scan[2][i]
    end
    from = scan[1]
  until #fields > 0 or from == '0'
  return fields
end

-- replica, the counter that was observed or '' or, by itself, 'self': frees what is in its name, unless its counter has
-- moved. Tickets keep their place for whoever takes the turn over. → ok | more | alive
local function free(keys, args)
  local base, now, replica = keys[1], now_ms(), args[1]
  local counter = redis.call('HGET', base .. ':beats', replica)
  if args[2] ~= 'self' and counter and counter ~= args[2] then
    return 'alive'
  end
  local held = base .. ':replica:' .. replica
  local some = some_fields(held)
  for i = 1, math.min(#some, FREED_AT_ONCE) do
    local generation = some[i]
    local ticket = read(base, generation)
    if ticket and ticket.replica == replica then
      take_out(base, ticket)
      redis.call('HDEL', ticket.key, 'replica')
      redis.call('EXPIRE', ticket.key, PARKED_SECONDS)
    else
      redis.call('HDEL', base .. ':replica:' .. replica, generation)
    end
  end
  if redis.call('EXISTS', held) == 0 then
    report(keys, { replica, '', '[]' })
    redis.call('HDEL', base .. ':reports', replica)
    return 'ok'
  end
  -- Nothing is given out before the end: much of it would go to the same replica again.
  return 'more'
end

register('queue_join', join)
register('queue_give_back', give_back, 'allow-oom')
register('queue_release', release, 'allow-oom')
register('queue_restore', restore, 'allow-oom')
register('queue_report', report, 'allow-oom')
register('queue_tick', tick, 'allow-oom')
register('queue_places', places, 'no-writes')
register('queue_room', room, 'allow-oom')
register('queue_holdings', holdings, 'no-writes')
register('queue_free', free, 'allow-oom')
