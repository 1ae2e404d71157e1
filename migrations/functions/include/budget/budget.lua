-- Storage budgets: how much the sessions of each payer take, and which of them go where they take
-- too much. A payer is a user, or the network of callers that are not signed in.
--
-- This index is derived from the sessions, which lie in other hash slots: a replica measures a
-- session at the end of each turn and records it here. What a failover loses is recorded again with
-- the session's next turn.
--
-- It is also the list of a user's sessions. A session is listed before it is created or becomes the
-- user's, so that none is missing where a replica is killed in between; an entry without a session
-- goes when it is read. The sessions themselves are the truth.
--
-- Every key begins with the budget's name (keys.budget, `base` in what follows), and so lies in its
-- slot. Times are Redis's, in seconds.
--   :sessions        hash: session → <bytes> <payer>
--   :expiry          sorted set: sessions that expire, by when
--   :payer:<payer>   sorted set: the payer's sessions by when they were recorded last, in seconds with
--                    six decimals
--   :anonymous       sorted set: the networks of anonymous callers by bytes
--   :users           sorted set: users by bytes
--   :total           string: the bytes of all anonymous sessions
--   :reserved        hash: '<session> <payer>' → bytes that are about to be stored, and count for the
--                    payer until they are recorded or the reservation ends
--   :reservations    sorted set: the fields of :reserved, by when each ends
--   :deleting:<deletion>  sorted set: the sessions that are left of a deletion of all sessions of a
--                    user; it was the user's list when the deletion began
--   :deletions       sorted set: deletions that have not ended, by when another replica resumes them
--   :deletion_owners hash: deletion → <when it began, in microseconds> <payer>

-- Sessions that one call removes or names, at most.
local SESSIONS_AT_ONCE = 20
-- Networks that one call looks at, at most.
local NETWORKS_AT_ONCE = 10

-- How long a session is listed that was never recorded, before a replica looks for it: longer than
-- its first turn waits and runs.
local LISTED_SECONDS = 86400
-- How long another replica has to look for it, where the first one does not.
local LOOK_AGAIN_SECONDS = 600

local function now_seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

-- Returns a time as a score. Lua itself writes numbers with fewer digits.
local function score_of(seconds)
  return string.format('%.6f', seconds)
end

local function is_anonymous(payer)
  return string.sub(payer, 1, 2) == 'a:'
end

-- Returns the sorted set of payers that this payer belongs to.
local function payers_of(base, payer)
  return base .. (is_anonymous(payer) and ':anonymous' or ':users')
end

-- Adds bytes, which may be negative, to a payer.
local function add_bytes(base, payer, bytes)
  local payers = payers_of(base, payer)
  if tonumber(redis.call('ZINCRBY', payers, bytes, payer)) <= 0 then
    redis.call('ZREM', payers, payer)
  end
  if is_anonymous(payer) then
    redis.call('INCRBY', base .. ':total', bytes)
  end
end

-- Returns the bytes of a recorded session and its payer, or nil.
local function recorded(base, session)
  local entry = redis.call('HGET', base .. ':sessions', session)
  if entry then
    local bytes, payer = string.match(entry, '^(%d+) (.*)$')
    return tonumber(bytes), payer
  end
end

-- Removes a session from the index.
local function forget(base, session)
  local bytes, payer = recorded(base, session)
  redis.call('ZREM', base .. ':expiry', session)
  if bytes then
    redis.call('HDEL', base .. ':sessions', session)
    redis.call('ZREM', base .. ':payer:' .. payer, session)
    add_bytes(base, payer, -bytes)
  end
end

-- Lists a session for a user.
local function list(base, payer, session, now)
  redis.call('ZADD', base .. ':payer:' .. payer, score_of(now), session)
  if not recorded(base, session) then
    redis.call('HSET', base .. ':sessions', session, '0 ' .. payer)
    redis.call('ZADD', base .. ':expiry', score_of(now + LISTED_SECONDS), session)
  end
end

-- Returns the bytes that are reserved for a payer in a session.
local function reserved(base, session, payer)
  return tonumber(redis.call('HGET', base .. ':reserved', session .. ' ' .. payer) or '0')
end

-- Ends a reservation, if there is one.
local function release(base, session, payer)
  local bytes, field = reserved(base, session, payer), session .. ' ' .. payer
  if redis.call('ZREM', base .. ':reservations', field) == 1 then
    redis.call('HDEL', base .. ':reserved', field)
    add_bytes(base, payer, -bytes)
  end
end

-- Reserves bytes for a payer in a session, in place of what was reserved there before, if that was
-- less: what it was reserved for may be under way.
local function reserve(base, session, payer, bytes, ends)
  bytes = math.max(bytes, reserved(base, session, payer))
  release(base, session, payer)
  local field = session .. ' ' .. payer
  redis.call('HSET', base .. ':reserved', field, bytes)
  redis.call('ZADD', base .. ':reservations', score_of(ends), field)
  add_bytes(base, payer, bytes)
end

-- Removes some sessions that have expired, whoever pays for them, and reservations that have ended.
-- Every call that adds one removes more than one. Returns the sessions of users that were listed
-- long ago and never recorded: they may exist, which the caller looks for.
local function forget_expired(base, now)
  local expired = redis.call('ZRANGEBYSCORE', base .. ':expiry', '-inf', score_of(now), 'LIMIT', 0,
    SESSIONS_AT_ONCE)
  local unrecorded = {}
  for _, session in ipairs(expired) do
    local bytes, payer = recorded(base, session)
    if bytes == 0 and not is_anonymous(payer) then
      redis.call('ZADD', base .. ':expiry', score_of(now + LOOK_AGAIN_SECONDS), session)
      unrecorded[#unrecorded + 1] = session
    else
      forget(base, session)
    end
  end
  local ended = redis.call('ZRANGEBYSCORE', base .. ':reservations', '-inf', score_of(now), 'LIMIT',
    0, SESSIONS_AT_ONCE)
  for _, field in ipairs(ended) do
    release(base, string.match(field, '^(%S+) (.*)$'))
  end
  return unrecorded
end

-- Returns when a deletion began and its payer, or nil where it has ended.
local function deletion_owner(base, deletion)
  local entry = redis.call('HGET', base .. ':deletion_owners', deletion)
  if entry then
    return string.match(entry, '^(%d+) (.*)$')
  end
end

-- The shares of the limit of all anonymous sessions beyond which sessions are removed, and beyond
-- which nothing more is stored. The rest of it is for turns that run or wait, which are recorded at
-- their end, and for what Redis takes beside them, so that its memory grows by less than the limit.
local REMOVE_SHARE = 0.75
local REFUSE_SHARE = 0.9

-- Returns the bytes that all anonymous sessions take beyond this share of the limit.
local function bytes_over(base, limit, share)
  return tonumber(redis.call('GET', base .. ':total') or '0') - share * tonumber(limit)
end

-- Returns sessions to remove where all anonymous ones take too much. Each is, when the ones before it
-- are gone, the one that was used least recently of the network that takes most, however long ago
-- that was: so a network that takes more than others has no share in their room. Never the session
-- that the call is about, which is in use.
local function sessions_to_remove(base, limit, in_use)
  local over, remove = bytes_over(base, limit, REMOVE_SHARE), {}
  if over <= 0 then
    return remove
  end
  local flat = redis.call('ZRANGE', base .. ':anonymous', 0, NETWORKS_AT_ONCE - 1, 'REV', 'WITHSCORES')
  local networks = {}
  for i = 1, #flat, 2 do
    networks[#networks + 1] = { payer = flat[i], bytes = tonumber(flat[i + 1]), next = 1 }
  end
  while over > 0 and #remove < SESSIONS_AT_ONCE do
    local largest
    for _, network in ipairs(networks) do
      if not largest or network.bytes > largest.bytes then
        largest = network
      end
    end
    if not largest or largest.bytes <= 0 then
      return remove
    end
    largest.sessions = largest.sessions
      or redis.call('ZRANGE', base .. ':payer:' .. largest.payer, 0, SESSIONS_AT_ONCE - 1)
    local session = largest.sessions[largest.next]
    if session then
      local bytes = recorded(base, session) or 0
      largest.next, largest.bytes = largest.next + 1, largest.bytes - bytes
      if session ~= in_use then
        remove[#remove + 1] = session
        over = over - bytes
      end
    else
      largest.bytes = 0
    end
  end
  return remove
end
