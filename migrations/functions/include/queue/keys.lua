-- The keys of the queue: each is built here, and nowhere else.
--
-- Every key begins with the queue's name (keys.queue, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in milliseconds.

-- A hash: user, source, networks (around the source, the smallest first), running_limit (of the
-- source; 0: none), model, session, prefixes (digests of the conversation and its beginnings, the
-- longest first; absent where there are none), start (the round), finish_before (of the user, where
-- the source is in wider networks), score, first, grants, replica (none: parked until a replica takes
-- it over), host and since while it holds a slot, not:<host> → until when.
local function ticket_key(base, generation)
  return base .. ':ticket:' .. generation
end

-- A sorted set: the waiting generations of a model by score.
local function model_key(base, model)
  return base .. ':model:' .. model
end

-- A set: the models that tickets wait for.
local function models_key(base)
  return base .. ':models'
end

-- A sorted set: the waiting generations of a model and a replica by score, from which slots are
-- granted.
local function line_key(base, replica, model)
  return base .. ':line:' .. replica .. ':' .. model
end

-- A set: the replicas with a line of the model.
local function lines_key(base, model)
  return base .. ':lines:' .. model
end

-- A sorted set: users, and wider networks of addresses, by finish.
local function users_key(base)
  return base .. ':users'
end

-- A sorted set: the waiting generations of a source or of a wider network by score.
local function source_key(base, network)
  return base .. ':source:' .. network
end

-- A set: the generations of a source or of a wider network in lines or with a slot, where their number
-- is bounded.
local function active_key(base, network)
  return base .. ':active:' .. network
end

-- A sorted set: the waiting generations that a source or a wider network with as many active ones as
-- it may have holds back, by score.
local function held_back_key(base, network)
  return base .. ':held_back:' .. network
end

-- A hash: generation → host, '' while it waits. Also the name of the channel of the replica's grants.
local function replica_key(base, replica)
  return base .. ':replica:' .. replica
end

-- A hash: slots, time (virtual), turn_ms (mean), full (until when), has:<model> → loaded | stored,
-- via:<replica> → open | trial | shut.
local function host_key(base, host)
  return base .. ':host:' .. host
end

-- A set: the names of the hosts.
local function hosts_key(base)
  return base .. ':hosts'
end

-- A hash: generation → since when it holds a slot of the host.
local function held_key(base, host)
  return base .. ':held:' .. host
end

-- A sorted set: '<generation> <host>' of slots that parked tickets keep → until when.
local function reserved_key(base)
  return base .. ':reserved'
end

-- A string: the host whose prompt cache has this session, or the conversation with this digest that
-- came with a request.
local function ran_key(base, session_or_digest)
  return base .. ':ran:' .. session_or_digest
end

-- A hash: replica → digest of the host table that it reported.
local function reports_key(base)
  return base .. ':reports'
end

-- A string: the number of tickets so far.
local function arrivals_key(base)
  return base .. ':arrivals'
end

-- A string: when there is room for the ticket that was refused last.
local function promised_key(base)
  return base .. ':promised'
end
