-- Storage budgets: how much the sessions of each payer take, and which of them go where they take
-- too much. A payer is a user, or the network of callers that are not signed in: an IPv4 address, or
-- an IPv6 /64 behind the /56 and the /48 around it, joined by points. Those count what the networks
-- within them take together.
--
-- This index is derived from the sessions, which lie in other hash slots: a replica measures a
-- session at the end of each turn and records it here. A record that a failover loses is written again with
-- the session's next turn.
--
-- It is also the list of a user's sessions. A session is listed before it is created or becomes the
-- user's, so that none is missing where a replica is killed in between; an entry without a session
-- goes when it is read. The sessions themselves are the truth.

-- Sessions that one call removes or names, at most, and those that it looks at for that.
local SESSIONS_AT_ONCE = 20
local LOOKED_AT_ONCE = 100

-- How long a session is listed that was never recorded, before a replica looks for it: longer than
-- its first turn waits and runs.
local LISTED_SECONDS = 86400
-- How long another replica has to look for it, where the first one does not.
local LOOK_AGAIN_SECONDS = 600
-- After which time another replica removes a session that the first one did not remove.
local REMOVE_AGAIN_SECONDS = 10

-- For how long a session that was in use when it should go stands behind the others of its network:
-- one with an open turn, which cannot go, also behind those with a client that listens.
local IN_USE_SECONDS = { listened = 86400, turn = 172800 }
-- For how long one with an open turn is not named again. A turn that ends is recorded at once.
local NOT_AGAIN_SECONDS = 5

-- Returns the time of Redis in seconds.
local function now_seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

-- Returns a time as a score. Lua itself writes numbers with fewer digits.
local function score_of(seconds)
  return string.format('%.6f', seconds)
end

-- Returns whether a payer is the network of callers that are not signed in.
local function is_anonymous(payer)
  return string.sub(payer, 1, 2) == 'a:'
end

-- Returns a payer and the networks around it, the widest first.
local function networks_of(payer)
  local networks = {}
  if is_anonymous(payer) then
    for stop in string.gmatch(payer, '()%.') do
      networks[#networks + 1] = string.sub(payer, 1, stop - 1)
    end
  end
  networks[#networks + 1] = payer
  return networks
end

-- Returns the sorted sets in which the bytes of a payer count, and the member of each: those of the
-- networks around it, the widest first, and its own.
local function counts_of(base, payer)
  local counts, set = {}, is_anonymous(payer) and anonymous_key(base) or users_key(base)
  for i, network in ipairs(networks_of(payer)) do
    counts[i] = { set, network }
    set = within_key(base, network)
  end
  return counts
end

-- Returns the bytes of one of these counts.
local function counted(count)
  return tonumber(redis.call('ZSCORE', count[1], count[2]) or '0')
end

-- Adds bytes, which may be negative, to a payer and to the networks around it.
local function add_bytes(base, payer, bytes)
  if bytes == 0 then
    return
  end
  for _, count in ipairs(counts_of(base, payer)) do
    if tonumber(redis.call('ZINCRBY', count[1], bytes, count[2])) <= 0 then
      redis.call('ZREM', count[1], count[2])
    end
  end
  if is_anonymous(payer) then
    redis.call('INCRBY', total_key(base), bytes)
  end
end

-- Returns the number and the text of an entry '<number> <text>' of a hash, or nil.
local function read_entry(hash, field)
  local number, text = string.match(redis.call('HGET', hash, field) or '', '^(%d+) (.*)$')
  return tonumber(number), text
end

-- Returns the bytes of a recorded session and its payer, or nil.
local function recorded(base, session)
  return read_entry(sessions_key(base), session)
end

-- Changes the numbers of sessions in the networks around a payer.
local function count_sessions(base, payer, change)
  local networks, counts = networks_of(payer), session_counts_key(base)
  for i = 1, #networks - 1 do
    if redis.call('HINCRBY', counts, networks[i], change) <= 0 then
      redis.call('HDEL', counts, networks[i])
    end
  end
end

-- Adds a session to those of a payer, or notes another time for it.
local function add_session(base, payer, session, time)
  if redis.call('ZADD', payer_key(base, payer), score_of(time), session) == 1 then
    count_sessions(base, payer, 1)
  end
end

-- Removes a session from those of a payer.
local function remove_session(base, payer, session)
  if redis.call('ZREM', payer_key(base, payer), session) == 1 then
    count_sessions(base, payer, -1)
  end
end

-- Counts the bytes no more of a session that a replica was about to remove: it is removed, or recorded
-- again.
local function settle(base, session)
  local bytes = redis.call('HGET', leaving_key(base), session)
  if bytes then
    redis.call('HDEL', leaving_key(base), session)
    redis.call('INCRBY', total_key(base), -bytes)
    redis.call('INCRBY', leaving_bytes_key(base), -bytes)
  end
end

-- Removes a session from the index.
local function forget(base, session)
  settle(base, session)
  local bytes, payer = recorded(base, session)
  redis.call('ZREM', expiry_key(base), session)
  if bytes then
    redis.call('HDEL', sessions_key(base), session)
    remove_session(base, payer, session)
    add_bytes(base, payer, -bytes)
  end
end

-- Takes an anonymous session that a replica is about to remove from its network, so that no other call
-- names it, too. One that is in use is recorded again.
local function set_aside(base, session, now)
  local bytes, payer = recorded(base, session)
  redis.call('HSET', sessions_key(base), session, '0 ' .. payer)
  remove_session(base, payer, session)
  redis.call('ZADD', expiry_key(base), score_of(now + REMOVE_AGAIN_SECONDS), session)
  add_bytes(base, payer, -bytes)
  redis.call('HSET', leaving_key(base), session, bytes)
  redis.call('INCRBY', total_key(base), bytes)
  redis.call('INCRBY', leaving_bytes_key(base), bytes)
end

-- Lists a session for a user.
local function list(base, payer, session, now)
  add_session(base, payer, session, now)
  if not recorded(base, session) then
    redis.call('HSET', sessions_key(base), session, '0 ' .. payer)
    redis.call('ZADD', expiry_key(base), score_of(now + LISTED_SECONDS), session)
  end
end

-- The purposes for which bytes are reserved. A reservation for one purpose takes the place of an earlier one
-- for the same purpose, and of no other.
local PURPOSES = { 'import', 'claim' }

-- Returns the name of a reservation, which the hash and the sorted set of them have in common.
local function reservation_of(session, purpose, payer)
  return session .. ' ' .. purpose .. ' ' .. payer
end

-- Returns the bytes of a reservation, and the token of the call that reserved last.
local function reserved(base, reservation)
  local bytes, token = read_entry(reserved_key(base), reservation)
  return bytes or 0, token
end

-- Ends a reservation, if there is one.
local function release(base, reservation)
  local bytes = reserved(base, reservation)
  if redis.call('ZREM', reservations_key(base), reservation) == 1 then
    redis.call('HDEL', reserved_key(base), reservation)
    add_bytes(base, string.match(reservation, '^%S+ %S+ (.*)$'), -bytes)
  end
end

-- Ends all reservations of a payer in a session.
local function release_all(base, session, payer)
  for _, purpose in ipairs(PURPOSES) do
    release(base, reservation_of(session, purpose, payer))
  end
end

-- Reserves bytes instead of what was reserved there before, if that was less: what it was reserved
-- for may be under way.
local function reserve(base, reservation, bytes, token, ends)
  local payer = string.match(reservation, '^%S+ %S+ (.*)$')
  bytes = math.max(bytes, (reserved(base, reservation)))
  release(base, reservation)
  redis.call('HSET', reserved_key(base), reservation, string.format('%.0f %s', bytes, token))
  redis.call('ZADD', reservations_key(base), score_of(ends), reservation)
  add_bytes(base, payer, bytes)
end

-- Removes some expired sessions of any payer, and reservations that have ended.
-- Every call that adds one removes more than one. Returns the sessions of users that were listed
-- long ago and never recorded: they may exist, which the caller looks for. Returns also anonymous
-- sessions that a replica named to remove did not remove.
local function forget_expired(base, now)
  local expired = redis.call('ZRANGEBYSCORE', expiry_key(base), '-inf', score_of(now), 'LIMIT', 0,
    SESSIONS_AT_ONCE)
  local unrecorded, left = {}, {}
  for _, session in ipairs(expired) do
    local bytes, payer = recorded(base, session)
    if bytes == 0 then
      local found, seconds = unrecorded, LOOK_AGAIN_SECONDS
      if is_anonymous(payer) then
        found, seconds = left, REMOVE_AGAIN_SECONDS
      end
      redis.call('ZADD', expiry_key(base), score_of(now + seconds), session)
      found[#found + 1] = session
    else
      forget(base, session)
    end
  end
  local ended = redis.call('ZRANGEBYSCORE', reservations_key(base), '-inf', score_of(now), 'LIMIT',
    0, SESSIONS_AT_ONCE)
  for _, reservation in ipairs(ended) do
    release(base, reservation)
  end
  return unrecorded, left
end

-- Returns when a deletion began and its payer, or nil where it has ended.
local function deletion_owner(base, deletion)
  local entry = redis.call('HGET', deletion_owners_key(base), deletion)
  if entry then
    return string.match(entry, '^(%d+) (.*)$')
  end
end

-- The shares of the limit of all anonymous sessions beyond which sessions are removed, beyond which
-- the networks that take most store nothing more, and beyond which nobody does. The rest of it is for
-- turns that run or wait, which are recorded at their end, and for what Redis takes in addition to them, so
-- that its memory grows by less than the limit.
local REMOVE_SHARE = 0.75
local LARGEST_SHARE = 0.825
local REFUSE_SHARE = 0.9

-- Returns the bytes that all anonymous sessions take beyond this share of the limit.
local function bytes_over(base, limit, share)
  return tonumber(redis.call('GET', total_key(base)) or '0') - share * tonumber(limit)
end

-- Whether an anonymous payer may store nothing more, because all of them take too much. First that
-- holds for networks that take half as much as the largest one or more: what they take is in use,
-- because it would be removed otherwise, and others shall not be refused for it.
local function is_total_used(base, limit, payer)
  if bytes_over(base, limit, REFUSE_SHARE) >= 0 then
    return true
  end
  if bytes_over(base, limit, LARGEST_SHARE) < 0 then
    return false
  end
  local largest = redis.call('ZRANGE', anonymous_key(base), 0, 0, 'REV', 'WITHSCORES')
  local bytes = counted(counts_of(base, payer)[1])
  return bytes > 0 and bytes >= tonumber(largest[2] or '0') / 2
end

-- Returns the networks in a sorted set, the largest first. One more than a call removes: when the last
-- one of them has nothing left to give, the call has removed enough.
local function largest_networks(set)
  local flat, networks = redis.call('ZRANGE', set, 0, SESSIONS_AT_ONCE, 'REV', 'WITHSCORES'), {}
  for i = 1, #flat, 2 do
    networks[#networks + 1] = { payer = flat[i], bytes = tonumber(flat[i + 1]), next = 1 }
  end
  return networks
end

-- Returns the way from the network that takes most to the one within it that takes most, and so on.
local function way_to_largest(base, networks)
  local way = {}
  while #networks > 0 do
    local largest = networks[1]
    for _, network in ipairs(networks) do
      if network.bytes > largest.bytes then
        largest = network
      end
    end
    way[#way + 1] = largest
    largest.within = largest.within or largest_networks(within_key(base, largest.payer))
    networks = largest.within
  end
  return way
end

-- Returns sessions to remove where all anonymous ones take too much, and `left`, and sets them aside.
-- Each is, when the ones before it are gone, the one that was used least recently of the network that
-- takes most, however long ago that was: so a network that takes more than others has no share in
-- their room. The network is the largest /64 of the largest /56 of the largest /48, or an IPv4
-- address. Never the session that the call is about, which is in use. With a limit of 0 there is none.
--
-- Returns also which of them may go although a client listens: all others of their network went
-- before.
local function sessions_to_remove(base, limit, in_use, now, left)
  local remove, although_listened = left, {}
  if tonumber(limit) == 0 then
    return remove, although_listened
  end
  local over = bytes_over(base, limit, REMOVE_SHARE)
    - tonumber(redis.call('GET', leaving_bytes_key(base)) or '0')
  local networks = over > 0 and largest_networks(anonymous_key(base)) or {}
  local looked = 0
  while over > 0 and #remove + #although_listened < SESSIONS_AT_ONCE and looked < LOOKED_AT_ONCE do
    looked = looked + 1
    local way = way_to_largest(base, networks)
    local largest = way[#way]
    if not largest or way[1].bytes <= 0 then
      break
    end
    largest.sessions = largest.sessions or redis.call('ZRANGE', payer_key(base, largest.payer), 0,
      SESSIONS_AT_ONCE, 'WITHSCORES')
    local session, used = largest.sessions[largest.next], largest.sessions[largest.next + 1]
    local bytes, depth = session and recorded(base, session), #way
    if not bytes then
      -- Counts that are left have no sessions, which a failover may have lost.
      while depth > 1 and way[depth].bytes <= 0 do
        depth = depth - 1
      end
      bytes = way[depth].bytes
    elseif session ~= in_use then
      over = over - bytes
      if tonumber(used) < now + IN_USE_SECONDS.turn - NOT_AGAIN_SECONDS then
        set_aside(base, session, now)
        local named = tonumber(used) > now and although_listened or remove
        named[#named + 1] = session
      end
    end
    largest.next = largest.next + 2
    for i = 1, depth do
      way[i].bytes = way[i].bytes - bytes
    end
  end
  return remove, although_listened
end
