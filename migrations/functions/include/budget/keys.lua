-- The keys of the storage budgets: each is built here, and nowhere else.
--
-- Every key begins with the budget's name (keys.budget, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in seconds.

-- A hash: session → <bytes> <payer>; 0 bytes for a user's session that was never recorded, and for an
-- anonymous one that a replica is about to remove.
local sessions_key = single_key(':sessions')

-- A sorted set: sessions that expire, by when; one with 0 bytes, by when another replica looks for it.
local expiry_key = single_key(':expiry')

-- A sorted set: the payer's sessions by when they were recorded last, in seconds with six decimals. An
-- anonymous session in the future was in use when it should go.
local payer_key = key_of_each(':payer:')

-- A sorted set: the widest networks of anonymous callers by bytes.
local anonymous_key = single_key(':anonymous')

-- A sorted set: the networks within a /48 or a /56 by bytes.
local within_key = key_of_each(':within:')

-- A hash: /48 or /56 → the sessions of all payers within it. Those of a payer are counted by its sorted
-- set.
local session_counts_key = single_key(':session_counts')

-- A sorted set: users by bytes.
local users_key = single_key(':users')

-- A string: the bytes of all anonymous sessions.
local total_key = single_key(':total')

-- A hash: session → the bytes of an anonymous session that a replica is about to remove. They count in
-- the total, and for no network.
local leaving_key = single_key(':leaving')

-- A string: the sum of those.
local leaving_bytes_key = single_key(':leaving_bytes')

-- A hash: '<session> <purpose> <payer>' → '<bytes> <token>': bytes that an import or a claim is about
-- to store, which count for the payer until they are recorded or the reservation ends. The token is
-- that of the call which reserved last.
local reserved_key = single_key(':reserved')

-- A sorted set: the fields of the reserved bytes, by when each ends.
local reservations_key = single_key(':reservations')

-- A sorted set: the sessions that are left of a deletion of all sessions of a user; it was the user's
-- list when the deletion began.
local deleting_key = key_of_each(':deleting:')

-- A sorted set: deletions that have not ended, by when another replica resumes them.
local deletions_key = single_key(':deletions')

-- A hash: deletion → <when it began, in microseconds> <payer>.
local deletion_owners_key = single_key(':deletion_owners')
