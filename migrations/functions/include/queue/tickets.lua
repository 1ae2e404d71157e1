-- Tickets: the queue decides which turn runs next, and on which host.
--
-- Start-time fair queueing: a ticket's start is the greatest of the virtual times of its hosts (the
-- start last granted there) and its user's finish. The lowest start goes first; among equal starts,
-- the ticket that came first. A ticket whose answer has text already goes before all others.
--
-- The user is a source: a signed-in user or an address. A session has at most one ticket, because
-- its turns run one after another, so that the order of arrival within a source is fair between the
-- sessions of that source.
--
-- Of a source whose running turns are bounded, only as many tickets are in lines or hold slots. The
-- others are held back, so that they block no ticket of another source.
--
-- A generation holds a slot, and a replica holds the generation's ticket. The slots in use are the
-- entries of :held:<host>; no separate count is kept.

-- Arrivals that are distinct among equal starts: 24 bits of a score, which leaves 29 for starts.
local ARRIVALS = 16777216
-- The number of users whose finishes are kept, the greatest first.
local USERS = 20000
-- How long a source's active tickets are kept after the last one joined: longer than any turn.
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

-- Returns the networks whose waiting tickets are counted: the source of the ticket, and the wider
-- networks around it, the smallest first.
local function networks_of(source, wider)
  local networks = {}
  if source ~= '' then
    networks[1] = source
  end
  for network in string.gmatch(wider or '', '%S+') do
    networks[#networks + 1] = network
  end
  return networks
end

-- Returns the first of these networks that has as many waiting tickets as it may, or nil. Each wider
-- network may have twice as many as the one before it.
local function crowded_network(base, source, wider, share)
  for _, network in ipairs(networks_of(source, wider)) do
    if redis.call('ZCARD', source_key(base, network)) >= share then
      return network
    end
    share = 2 * share
  end
end

-- Counts a ticket as active where the active tickets of its source are bounded.
local function activate(base, ticket)
  if (tonumber(ticket.running_limit) or 0) > 0 then
    local active = active_key(base, ticket.source)
    redis.call('SADD', active, ticket.generation)
    redis.call('EXPIRE', active, ACTIVE_SECONDS)
  end
end

-- Whether the source of a ticket may have one more active ticket. An answer with text is never held
-- back.
local function may_be_active(base, ticket)
  local limit = tonumber(ticket.running_limit) or 0
  return limit == 0 or ticket.first == '1'
    or redis.call('SCARD', active_key(base, ticket.source)) < limit
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
  redis.call('SADD', models_key(base), ticket.model)
  for _, network in ipairs(networks_of(ticket.source, ticket.networks)) do
    redis.call('ZADD', source_key(base, network), ticket.score, ticket.generation)
  end
  redis.call('HSET', replica_key(base, ticket.replica), ticket.generation, '')
  if may_be_active(base, ticket) then
    enter_line(base, ticket)
  else
    redis.call('ZADD', held_back_key(base, ticket.source), ticket.score, ticket.generation)
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
  if redis.call('EXISTS', waiting) == 0 then
    redis.call('SREM', models_key(base), ticket.model)
  end
  for _, network in ipairs(networks_of(ticket.source, ticket.networks)) do
    redis.call('ZREM', source_key(base, network), ticket.generation)
  end
  if (tonumber(ticket.running_limit) or 0) > 0 then
    redis.call('ZREM', held_back_key(base, ticket.source), ticket.generation)
  end
end

-- Lets tickets that are held back enter their lines where their source has room for them. It follows
-- each call of `vacate` after which the ticket does not enter the queue again.
local function promote(base, source)
  local held_back = held_back_key(base, source)
  while source ~= '' do
    local generation = redis.call('ZRANGE', held_back, 0, 0)[1]
    local ticket = generation and read_ticket(base, generation)
    if ticket and not may_be_active(base, ticket) or not generation then
      return
    end
    redis.call('ZREM', held_back, generation)
    if ticket and ticket.replica then
      enter_line(base, ticket)
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
  if (tonumber(ticket.running_limit) or 0) > 0 then
    redis.call('SREM', active_key(base, ticket.source), ticket.generation)
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
      promote(base, ticket.source)
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

-- Charges a user for a turn with this start: the user's finish is at least one later.
local function charge(base, user, start)
  local users = users_key(base)
  redis.call('ZADD', users, 'GT', start + 1, user)
  local beyond = redis.call('ZCARD', users) - USERS
  if beyond > 0 then
    redis.call('ZREMRANGEBYRANK', users, 0, beyond - 1)
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
