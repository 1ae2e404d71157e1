-- Storage budgets: how much the sessions of each payer take, and which of them go where they take
-- too much. A payer is a user, or the network of callers that are not signed in.
--
-- This index is derived from the sessions, which lie in other hash slots: a replica measures a
-- session at the end of each turn and records it here. What a failover loses is recorded again with
-- the session's next turn.
--
-- Every key begins with the budget's name (keys.budget, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in seconds.
--   :sessions        hash: session → <bytes> <when recorded> <payer>
--   :payer:<payer>   sorted set: the payer's sessions by expiry; +inf for sessions that never expire
--   :anonymous       sorted set: the networks of anonymous callers by bytes
--   :users           sorted set: users by bytes
--   :total           string: the bytes of all anonymous sessions

-- Sessions that one call looks at, at most.
local SESSIONS_AT_ONCE = 20

local function now_seconds()
  return tonumber(redis.call('TIME')[1])
end

-- Returns the sorted set of payers that this payer belongs to.
local function payers_of(base, payer)
  return base .. (string.sub(payer, 1, 2) == 'a:' and ':anonymous' or ':users')
end

-- Adds bytes, which may be negative, to a payer.
local function add_bytes(base, payer, bytes)
  local payers = payers_of(base, payer)
  local sum = tonumber(redis.call('ZINCRBY', payers, bytes, payer))
  if sum <= 0 then
    redis.call('ZREM', payers, payer)
  end
  if payers == base .. ':anonymous' then
    redis.call('INCRBY', base .. ':total', bytes)
  end
end

-- Returns the bytes of a recorded session, when it was recorded, and its payer; or nil.
local function recorded(base, session)
  local entry = redis.call('HGET', base .. ':sessions', session)
  if not entry then
    return nil
  end
  local bytes, at, payer = string.match(entry, '^(%d+) (%d+) (.*)$')
  return tonumber(bytes), tonumber(at), payer
end

-- Removes a session from the index.
local function forget(base, session)
  local bytes, _, payer = recorded(base, session)
  if bytes then
    redis.call('HDEL', base .. ':sessions', session)
    redis.call('ZREM', base .. ':payer:' .. payer, session)
    add_bytes(base, payer, -bytes)
  end
end

-- Removes some sessions of a payer that have expired.
local function forget_expired(base, payer, now)
  local expired = redis.call('ZRANGEBYSCORE', base .. ':payer:' .. payer, '-inf', now, 'LIMIT', 0,
    SESSIONS_AT_ONCE)
  for _, session in ipairs(expired) do
    forget(base, session)
  end
end
