-- The keys of the storage budgets: each is built here, and nowhere else.
--
-- Every key begins with the budget's name (keys.budget, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in seconds.

-- A hash: session → <bytes> <payer>; 0 bytes for a user's session that was never recorded, and for an
-- anonymous one that a replica is about to remove.
local function sessions_key(base)
  return base .. ':sessions'
end

-- A sorted set: sessions that expire, by when; one with 0 bytes, by when another replica looks for it.
local function expiry_key(base)
  return base .. ':expiry'
end

-- A sorted set: the payer's sessions by when they were recorded last, in seconds with six decimals. An
-- anonymous session in the future was in use when it should go.
local function payer_key(base, payer)
  return base .. ':payer:' .. payer
end

-- A sorted set: the widest networks of anonymous callers by bytes.
local function anonymous_key(base)
  return base .. ':anonymous'
end

-- A sorted set: the networks within a /48 or a /56 by bytes.
local function within_key(base, network)
  return base .. ':within:' .. network
end

-- A hash: /48 or /56 → the sessions of all payers within it. Those of a payer are counted by its sorted
-- set.
local function session_counts_key(base)
  return base .. ':session_counts'
end

-- A sorted set: users by bytes.
local function users_key(base)
  return base .. ':users'
end

-- A string: the bytes of all anonymous sessions.
local function total_key(base)
  return base .. ':total'
end

-- A hash: session → the bytes of an anonymous session that a replica is about to remove. They count in
-- the total, and for no network.
local function leaving_key(base)
  return base .. ':leaving'
end

-- A string: the sum of those.
local function leaving_bytes_key(base)
  return base .. ':leaving_bytes'
end

-- A hash: '<session> <purpose> <payer>' → '<bytes> <token>': bytes that an import or a claim is about
-- to store, which count for the payer until they are recorded or the reservation ends. The token is
-- that of the call which reserved last.
local function reserved_key(base)
  return base .. ':reserved'
end

-- A sorted set: the fields of the reserved bytes, by when each ends.
local function reservations_key(base)
  return base .. ':reservations'
end

-- A sorted set: the sessions that are left of a deletion of all sessions of a user; it was the user's
-- list when the deletion began.
local function deleting_key(base, deletion)
  return base .. ':deleting:' .. deletion
end

-- A sorted set: deletions that have not ended, by when another replica resumes them.
local function deletions_key(base)
  return base .. ':deletions'
end

-- A hash: deletion → <when it began, in microseconds> <payer>.
local function deletion_owners_key(base)
  return base .. ':deletion_owners'
end
