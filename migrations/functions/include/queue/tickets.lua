-- Tickets: the queue decides which turn runs next, and on which host.
--
-- Start-time fair queueing: a ticket's start is the greatest of the virtual times of its hosts (the
-- start last granted there) and its user's finish. The lowest start goes first; among equal starts,
-- the ticket that came first. A ticket whose answer has text already goes before all others.
--
-- A generation holds a slot, and a replica holds the generation's ticket. The slots in use are the
-- entries of :held:<host>; no separate count is kept.
--
-- Every key begins with the queue's name (keys.queue, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in milliseconds.
--   :ticket:<generation>    hash: user, source, model, session, start, score, first, grants,
--                           replica (none: parked until a replica takes it over), host and since
--                           while it holds a slot, not:<host> → until when
--   :model:<model>          sorted set: waiting generations by score
--   :line:<replica>:<model> the same, of one replica
--   :lines:<model>          set: the replicas with a line of the model
--   :models                 set: the models that tickets wait for
--   :users                  sorted set: users by finish
--   :source:<source>        sorted set: waiting generations by score
--   :replica:<replica>      hash: generation → host, '' while it waits; also the name of the channel
--                           of the replica's grants
--   :host:<host>            hash: slots, time (virtual), turn_ms (mean), full (until when),
--                           has:<model> → loaded | stored, via:<replica> → open | trial | shut
--   :hosts                  set: the names of the hosts
--   :held:<host>            hash: generation → since when it holds a slot
--   :reserved               sorted set: '<generation> <host>' of slots that parked tickets keep → until
--                           when
--   :ran:<session>          string: the host whose prompt cache has the session
--   :reports                hash: replica → digest of the host table that it reported
--   :arrivals               string: the number of tickets so far
--   :promised               string: when there is room for the ticket that was refused last

-- Arrivals that are distinct among equal starts: 24 bits of a score, which leaves 29 for starts.
local ARRIVALS = 16777216
-- The number of users whose finishes are kept, the greatest first.
local USERS = 20000
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

-- Returns the key of a line.
local function line_of(base, replica, model)
  return base .. ':line:' .. replica .. ':' .. model
end

-- Adds a ticket to the queue, at its score.
local function enter_queue(base, ticket)
  local line = line_of(base, ticket.replica, ticket.model)
  redis.call('ZADD', line, ticket.score, ticket.generation)
  redis.call('SADD', base .. ':lines:' .. ticket.model, ticket.replica)
  redis.call('ZADD', base .. ':model:' .. ticket.model, ticket.score, ticket.generation)
  redis.call('SADD', base .. ':models', ticket.model)
  redis.call('ZADD', base .. ':source:' .. ticket.source, ticket.score, ticket.generation)
  redis.call('HSET', base .. ':replica:' .. ticket.replica, ticket.generation, '')
end

-- Removes a ticket from the queue.
local function leave_queue(base, ticket)
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

-- Takes a ticket from its replica. Its slot is reserved for the replica that takes the turn over:
-- the host's prompt cache has its answer so far.
local function park(base, ticket, now)
  redis.call('HDEL', base .. ':replica:' .. ticket.replica, ticket.generation)
  redis.call('HDEL', ticket.key, 'replica')
  redis.call('EXPIRE', ticket.key, PARKED_SECONDS)
  redis.call('ZADD', base .. ':reserved', now + RESERVED_MS, ticket.generation .. ' ' .. ticket.host)
end

-- Frees the slot or the position of a ticket; the ticket itself stays.
local function vacate(base, ticket)
  if ticket.host and not ticket.replica then
    redis.call('ZREM', base .. ':reserved', ticket.generation .. ' ' .. ticket.host)
  end
  if ticket.host then
    redis.call('HDEL', base .. ':held:' .. ticket.host, ticket.generation)
    redis.call('HDEL', ticket.key, 'host', 'since')
    ticket.host = nil
  elseif ticket.replica then
    leave_queue(base, ticket)
  end
  if ticket.replica then
    redis.call('HDEL', base .. ':replica:' .. ticket.replica, ticket.generation)
  end
end

-- Frees some slots whose reservation is over.
local function free_reserved(base, now)
  local reserved = base .. ':reserved'
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', reserved, '-inf', now, 'LIMIT', 0, 50)) do
    local generation, host = string.match(slot, '^(%S+) (.*)$')
    local ticket = read_ticket(base, generation)
    if ticket and ticket.host == host and not ticket.replica then
      vacate(base, ticket)
    elseif not ticket or ticket.host ~= host then
      redis.call('HDEL', base .. ':held:' .. host, generation)
    end
    redis.call('ZREM', reserved, slot)
  end
end

-- Returns the score of a new arrival. With `first`, it is lower than every start.
local function score(base, start, first)
  local arrival = (redis.call('INCR', base .. ':arrivals') % ARRIVALS) / ARRIVALS
  return string.format('%.17g', first and arrival - 1 or start + arrival)
end

-- Charges a user for a turn with this start: the user's finish is at least one later.
local function charge(base, user, start)
  local users = base .. ':users'
  redis.call('ZADD', users, 'GT', start + 1, user)
  local beyond = redis.call('ZCARD', users) - USERS
  if beyond > 0 then
    redis.call('ZREMRANGEBYRANK', users, 0, beyond - 1)
  end
end

-- Returns the models that tickets wait for, sorted.
local function waiting_models(base)
  local models = redis.call('SMEMBERS', base .. ':models')
  table.sort(models)
  return models
end

-- Returns the number of waiting tickets of these models.
local function count_waiting(base, models)
  local waiting = 0
  for _, model in ipairs(models) do
    waiting = waiting + redis.call('ZCARD', base .. ':model:' .. model)
  end
  return waiting
end
