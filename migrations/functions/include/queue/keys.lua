-- The keys of the queue: each is built here, and nowhere else.
--
-- Every key begins with the queue's name (keys.queue, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in milliseconds.

-- A hash: user, source, networks (around the source, the smallest first), running_limit (of the
-- source; 0: none), model, session, prefixes (digests of the conversation and its beginnings, the
-- longest first; absent where there are none), start (the round), finish_before (of the user, where
-- the source is in wider networks), score, first, joined (since when it waits for its first slot), grants,
-- replica (none: parked until a replica takes it over), host and since while it holds a slot, not:<host>
-- → until when.
local ticket_key = key_of_each(':ticket:')

-- A sorted set: the waiting generations of a model by score.
local model_key = key_of_each(':model:')

-- A sorted set: the waiting generations of a model by the time since which each waits.
local waits_key = key_of_each(':waits:')

-- A set: the models that tickets wait for.
local models_key = single_key(':models')

-- A sorted set: the waiting generations of a model and a replica by score, from which slots are
-- granted.
local function line_key(base, replica, model)
  return base .. ':line:' .. replica .. ':' .. model
end

-- A set: the replicas with a line of the model.
local lines_key = key_of_each(':lines:')

-- A sorted set: users, and wider networks of addresses, by finish.
local users_key = single_key(':users')

-- A sorted set: the waiting generations of a source or of a wider network by score.
local source_key = key_of_each(':source:')

-- A set: the generations of a source or of a wider network in lines or with a slot, where their number
-- is bounded.
local active_key = key_of_each(':active:')

-- A sorted set: the waiting generations that a source or a wider network with as many active ones as
-- it may have holds back, by score.
local held_back_key = key_of_each(':held_back:')

-- A hash: generation → host, '' while it waits. Also the name of the channel of the replica's grants.
local replica_key = key_of_each(':replica:')

-- A hash: slots, time (virtual), turn_ms (mean), full (until when), has:<model> → loaded | stored,
-- via:<replica> → open | trial | shut.
local host_key = key_of_each(':host:')

-- A set: the names of the hosts.
local hosts_key = single_key(':hosts')

-- A hash: generation → since when it holds a slot of the host.
local held_key = key_of_each(':held:')

-- A sorted set: '<generation> <host>' of slots that parked tickets keep → until when.
local reserved_key = single_key(':reserved')

-- A string: the host whose prompt cache has this session, or the conversation with this digest that
-- came with a request.
local ran_key = key_of_each(':ran:')

-- A hash: replica → digest of the host table that it reported.
local reports_key = single_key(':reports')

-- A string: the number of tickets so far.
local arrivals_key = single_key(':arrivals')

-- A string: when there is room for the ticket that was refused last.
local promised_key = single_key(':promised')
