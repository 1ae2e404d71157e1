-- Tickets: the queue decides which turn runs next, and on which host.
--
-- Start-time fair queueing in rounds: a ticket's start is the first round, from the greatest of the
-- virtual times of its hosts (the start last granted there) and its user's finish, in which each wider
-- network around its source has room. The lowest start goes first; among equal starts, the ticket that
-- came first. A ticket whose answer has text already goes before all others.
--
-- The user is a source: a signed-in user or an address. A session has at most one ticket, because
-- its turns run one after another, so that the order of arrival within a source is fair between the
-- sessions of that source.
--
-- A source has one ticket in a round: each charges it, by a finish one later. A wider network has two,
-- and the next wider one four; and one more of a source that has no other one waiting. So a few sources
-- with many tickets do not keep their neighbours waiting, and all of them together no other network. A
-- wider network is charged at a grant, and what waits is counted in its round.
--
-- Of a source whose running turns are bounded, only as many tickets are in lines or hold slots, of a
-- wider network twice as many, and so on. The others are held back, so that they block no ticket of
-- another source.
--
-- A generation holds a slot, and a replica holds the generation's ticket. The slots in use are the
-- entries of :held:<host>; no separate count is kept.

-- Arrivals that are distinct among equal starts: 24 bits of a score, which leaves 29 for starts.
local ARRIVALS = 16777216
-- The number of users and networks whose finishes are kept, the greatest first.
local USERS = 20000
-- How long a network's active tickets are kept after the last one joined: longer than any turn.
local ACTIVE_SECONDS = 7200
-- How long a ticket without a replica keeps its position.
local PARKED_SECONDS = 600
-- How long it keeps its slot: its turn is usually claimed by now, and joins within milliseconds.
local RESERVED_MS = 2000

-- Returns the time of Redis in milliseconds.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Creates a ticket, which these arguments describe. With `first` it goes before others.
local function create_ticket(base, args, start, first, at_score)
  local ticket = {
    key = ticket_key(base, args.generation), generation = args.generation, replica = args.replica,
    user = args.user, source = args.source, networks = args.networks,
    running_limit = args.running_limit, model = args.model, session = args.session,
    prefixes = args.prefixes, start = string.format('%.17g', start), first = first and '1' or '0',
    score = at_score, joined = now_ms(),
  }
  redis.call('HSET', ticket.key, 'replica', ticket.replica, 'user', ticket.user, 'source', ticket.source,
    'networks', ticket.networks, 'running_limit', ticket.running_limit, 'model', ticket.model,
    'session', ticket.session, 'start', ticket.start, 'first', ticket.first, 'score', ticket.score,
    'joined', ticket.joined)
  return ticket
end

-- Returns the ticket of a generation, or nil.
local function read_ticket(base, generation)
  local flat = redis.call('HGETALL', ticket_key(base, generation))
  if #flat == 0 then
    return nil
  end
  local ticket = { generation = generation, key = ticket_key(base, generation) }
  for i = 1, #flat, 2 do
    ticket[flat[i]] = flat[i + 1]
  end
  return ticket
end

-- Returns the networks of a ticket, or of the arguments that describe one: its source, and the wider
-- networks around it, the smallest first. Of each its width: what it may have, in shares of a source.
local function networks_of(ticket)
  local networks, width = {}, 1
  if ticket.source ~= '' then
    networks[1] = { name = ticket.source, width = 1 }
  end
  for name in string.gmatch(ticket.networks or '', '%S+') do
    width = 2 * width
    networks[#networks + 1] = { name = name, width = width }
  end
  return networks
end

-- Returns the name of the first of some networks that has as many tickets as it may, or nil.
local function first_full(networks, share, count_of)
  for _, network in ipairs(networks) do
    if count_of(network.name) >= share * network.width then
      return network.name
    end
  end
end

-- Returns the first network of a ticket to be that has as many waiting tickets as it may, or nil.
local function crowded_network(base, args)
  return first_full(networks_of(args), tonumber(args.source_limit), function(name)
    return redis.call('ZCARD', source_key(base, name))
  end)
end

-- Returns the networks of a ticket in which the number of active tickets is bounded.
local function bounded_networks(ticket)
  return (tonumber(ticket.running_limit) or 0) > 0 and networks_of(ticket) or {}
end

-- Counts a ticket as active in its bounded networks.
local function activate(base, ticket)
  for _, network in ipairs(bounded_networks(ticket)) do
    local active = active_key(base, network.name)
    redis.call('SADD', active, ticket.generation)
    redis.call('EXPIRE', active, ACTIVE_SECONDS)
  end
end

-- Returns the first network that may have no further active ticket, and so holds this one back, or
-- nil. An answer with text is never held back.
local function blocking_network(base, ticket)
  if ticket.first == '1' then
    return nil
  end
  return first_full(bounded_networks(ticket), tonumber(ticket.running_limit), function(name)
    return redis.call('SCARD', active_key(base, name))
  end)
end

-- Adds a ticket to its line, from which slots are granted.
local function enter_line(base, ticket)
  redis.call('ZADD', line_key(base, ticket.replica, ticket.model), ticket.score, ticket.generation)
  redis.call('SADD', lines_key(base, ticket.model), ticket.replica)
  activate(base, ticket)
end

-- Adds a ticket to the queue, at its score.
local function enter_queue(base, ticket)
  redis.call('ZADD', model_key(base, ticket.model), ticket.score, ticket.generation)
  -- A turn that had a slot waits again; one that was taken over waits on.
  local since = not ticket.grants and ticket.joined or now_ms()
  redis.call('ZADD', waits_key(base, ticket.model), since, ticket.generation)
  redis.call('SADD', models_key(base), ticket.model)
  for _, network in ipairs(networks_of(ticket)) do
    redis.call('ZADD', source_key(base, network.name), ticket.score, ticket.generation)
  end
  redis.call('HSET', replica_key(base, ticket.replica), ticket.generation, '')
  local blocking = blocking_network(base, ticket)
  if blocking then
    redis.call('ZADD', held_back_key(base, blocking), ticket.score, ticket.generation)
  else
    enter_line(base, ticket)
  end
end

-- Removes a ticket from the queue. It stays active until it is vacated.
local function leave_queue(base, ticket)
  local line = line_key(base, ticket.replica, ticket.model)
  redis.call('ZREM', line, ticket.generation)
  if redis.call('EXISTS', line) == 0 then
    redis.call('SREM', lines_key(base, ticket.model), ticket.replica)
  end
  local waiting = model_key(base, ticket.model)
  redis.call('ZREM', waiting, ticket.generation)
  redis.call('ZREM', waits_key(base, ticket.model), ticket.generation)
  if redis.call('EXISTS', waiting) == 0 then
    redis.call('SREM', models_key(base), ticket.model)
  end
  for _, network in ipairs(networks_of(ticket)) do
    redis.call('ZREM', source_key(base, network.name), ticket.generation)
  end
  for _, network in ipairs(bounded_networks(ticket)) do
    redis.call('ZREM', held_back_key(base, network.name), ticket.generation)
  end
end

-- Returns the first ticket that one of these networks holds back, and the index of that network.
local function first_held_back(base, networks)
  local generation, lowest, index
  for i, network in ipairs(networks) do
    local head = redis.call('ZRANGE', held_back_key(base, network.name), 0, 0, 'WITHSCORES')
    if head[1] and (not lowest or tonumber(head[2]) < lowest) then
      generation, lowest, index = head[1], tonumber(head[2]), i
    end
  end
  return generation, index
end

-- Lets tickets that are held back enter their lines where the networks of a ticket have room for them.
-- It follows each call of `vacate` after which that ticket does not enter the queue again. A ticket is
-- held back by one network at a time, which has no room: where another one of its networks blocks it
-- by now, that one holds it back.
local function promote(base, ticket)
  local networks = bounded_networks(ticket)
  while true do
    local generation, index = first_held_back(base, networks)
    if not generation then
      return
    end
    local network, held_back = networks[index].name, read_ticket(base, generation)
    local is_waiting = held_back and held_back.replica and not held_back.host
    local blocking = is_waiting and blocking_network(base, held_back)
    if blocking == network then
      table.remove(networks, index)
    else
      redis.call('ZREM', held_back_key(base, network), generation)
      if blocking then
        redis.call('ZADD', held_back_key(base, blocking), held_back.score, generation)
      elseif is_waiting then
        enter_line(base, held_back)
      end
    end
  end
end

-- Takes a ticket from its replica. Its slot is reserved for the replica that takes the turn over:
-- the host's prompt cache has its answer so far.
local function park(base, ticket, now)
  redis.call('HDEL', replica_key(base, ticket.replica), ticket.generation)
  redis.call('HDEL', ticket.key, 'replica')
  redis.call('EXPIRE', ticket.key, PARKED_SECONDS)
  redis.call('ZADD', reserved_key(base), now + RESERVED_MS, ticket.generation .. ' ' .. ticket.host)
end

-- Frees the slot or the position of a ticket; the ticket itself stays.
local function vacate(base, ticket)
  for _, network in ipairs(bounded_networks(ticket)) do
    redis.call('SREM', active_key(base, network.name), ticket.generation)
  end
  if ticket.host and not ticket.replica then
    redis.call('ZREM', reserved_key(base), ticket.generation .. ' ' .. ticket.host)
  end
  if ticket.host then
    redis.call('HDEL', held_key(base, ticket.host), ticket.generation)
    redis.call('HDEL', ticket.key, 'host', 'since')
    ticket.host = nil
  elseif ticket.replica then
    leave_queue(base, ticket)
  end
  if ticket.replica then
    redis.call('HDEL', replica_key(base, ticket.replica), ticket.generation)
  end
end

-- Frees some slots whose reservation is over.
local function free_reserved(base, now)
  local reserved = reserved_key(base)
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', reserved, '-inf', now, 'LIMIT', 0, 50)) do
    local generation, host = string.match(slot, '^(%S+) (.*)$')
    local ticket = read_ticket(base, generation)
    if ticket and ticket.host == host and not ticket.replica then
      vacate(base, ticket)
      promote(base, ticket)
    elseif not ticket or ticket.host ~= host then
      redis.call('HDEL', held_key(base, host), generation)
    end
    redis.call('ZREM', reserved, slot)
  end
end

-- Returns the score of a new arrival. With `first`, it is lower than every start.
local function score(base, start, first)
  local arrival = (redis.call('INCR', arrivals_key(base)) % ARRIVALS) / ARRIVALS
  return string.format('%.17g', first and arrival - 1 or start + arrival)
end

-- Raises the finish of a user or a network.
local function raise_finish(base, name, finish)
  local users = users_key(base)
  redis.call('ZADD', users, 'GT', finish, name)
  local beyond = redis.call('ZCARD', users) - USERS
  if beyond > 0 then
    redis.call('ZREMRANGEBYRANK', users, 0, beyond - 1)
  end
end

-- Returns the finish of a user or a network.
local function finish_of(base, name)
  return tonumber(redis.call('ZSCORE', users_key(base), name)) or 0
end

-- Charges a user for a turn with this start: the user's finish is at least one later.
local function charge(base, user, start)
  raise_finish(base, user, start + 1)
end

-- Returns the charge for a ticket that never ran to its user, unless a later start was computed from it.
local function return_charge(base, ticket)
  if finish_of(base, ticket.user) == tonumber(ticket.start) + 1 then
    redis.call('ZADD', users_key(base), ticket.finish_before or ticket.start, ticket.user)
  end
end

-- Returns the wider networks of a ticket, or of the arguments that describe one.
local function wider_networks(ticket)
  local networks = networks_of(ticket)
  if networks[1] and networks[1].width == 1 then
    table.remove(networks, 1)
  end
  return networks
end

-- Charges the wider networks around a ticket for its first grant. A network's finish is its round, and
-- the part of its tickets in that round that were granted. In a round that is over for a network,
-- which other hosts are in still, its tickets were counted before they were granted.
local function charge_wider_networks(base, ticket)
  local start = tonumber(ticket.start) or 0
  for _, network in ipairs(wider_networks(ticket)) do
    local finish = finish_of(base, network.name)
    if start >= math.floor(finish) then
      raise_finish(base, network.name, math.max(finish, start) + 1 / network.width)
    end
  end
end

-- Returns the models that tickets wait for, sorted.
local function waiting_models(base)
  local models = redis.call('SMEMBERS', models_key(base))
  table.sort(models)
  return models
end

-- Returns the number of waiting tickets of these models.
local function count_waiting(base, models)
  local waiting = 0
  for _, model in ipairs(models) do
    waiting = waiting + redis.call('ZCARD', model_key(base, model))
  end
  return waiting
end
