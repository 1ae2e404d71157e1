-- Limits of one caller: GCRA, the generic cell rate algorithm (ITU-T I.371), in its form with a
-- theoretical arrival time.
--
-- Every key begins with the caller's name (keys.caller, `base` in what follows), and so lies in its
-- slot. Times are microseconds on Redis's own clock, and integers, so that nothing is rounded.

-- A string: when all of the limit is back; it expires then.
local limit_key = key_of_each(':')

-- A sorted set: the caller's open sockets, each <replica> <number>, by when its hold ends.
local sockets_key = single_key(':sockets')

-- A string: what was taken under this name is not taken again.
local once_key = key_of_each(':once:')

-- A string: how often a request of this name was repeated and cost nothing.
local known_key = key_of_each(':known:')

-- A string: how many repeats of the caller cost nothing in this minute.
local repeats_key = single_key(':repeats')

-- Repeats of one name that cost nothing, at most: a balancer tries each replica once.
local REPEATS = 16
-- Repeats of one caller that cost nothing, at most, in a minute: a replica that is replaced has many.
local REPEATS_OF_CALLER = 120

-- Returns the time of Redis in microseconds.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Returns a list of limits from its flat form: of each its name, the quota, the microseconds in
-- which one comes back, the cost of this call, and where that gives back, when all of the limit was
-- to be back right after it was taken.
local function parse_limits(base, flat)
  local limits = {}
  for i = 1, #flat, 5 do
    limits[#limits + 1] = {
      key = limit_key(base, flat[i]),
      window = tonumber(flat[i + 1]) * tonumber(flat[i + 2]),
      interval = tonumber(flat[i + 2]),
      cost = tonumber(flat[i + 3]),
      taken_until = tonumber(flat[i + 4]),
    }
  end
  return limits
end

-- Reads how long it takes until all of each limit is back. After a failover the clock may be behind
-- the one that wrote the time: nobody waits longer for that than for the window and one cost that
-- was larger than what was left.
local function read_backlogs(limits, now)
  for _, limit in ipairs(limits) do
    local backlog = tonumber(redis.call('GET', limit.key) or '0') - now
    limit.backlog = math.min(math.max(backlog, 0), 2 * limit.window)
  end
end

-- Returns whether enough of a limit is left. A cost of 0 takes nothing, and needs one to be left; a
-- negative cost gives back.
local function has_enough(limit)
  return limit.cost < 0 or limit.backlog + math.max(limit.cost, 1) * limit.interval <= limit.window
end

-- Takes the cost of this call from each limit, or gives it back: without what has come back by itself
-- since it was taken, which others may have taken again.
local function take_all(limits, now)
  for _, limit in ipairs(limits) do
    if limit.cost ~= 0 then
      local change = limit.cost * limit.interval
      if limit.cost < 0 then
        change = -math.min(-change, math.max(limit.taken_until - now, 0))
      end
      limit.backlog = math.max(limit.backlog + change, 0)
      if limit.backlog == 0 then
        redis.call('DEL', limit.key)
      else
        redis.call('SET', limit.key, string.format('%.0f', now + limit.backlog), 'PX',
          math.ceil(limit.backlog / 1000))
      end
    end
  end
end

-- Returns the number of holds that have not ended, and removes some that have.
local function count_sockets(sockets, now)
  local now_score = string.format('%.0f', now)
  local ended = redis.call('ZRANGEBYSCORE', sockets, '-inf', now_score, 'LIMIT', 0, 500)
  if #ended > 0 then
    redis.call('ZREM', sockets, unpack(ended))
  end
  return redis.call('ZCOUNT', sockets, '(' .. now_score, '+inf')
end

-- Holds some sockets for so many seconds from now. Returns how many of them were not held before.
local function hold_sockets(sockets, held, now, seconds)
  local score = string.format('%.0f', now + seconds * 1000000)
  local entries = {}
  for i, socket in ipairs(held) do
    entries[2 * i - 1], entries[2 * i] = score, socket
  end
  local added = redis.call('ZADD', sockets, unpack(entries))
  redis.call('EXPIRE', sockets, seconds)
  return added
end

-- Returns whether a request of this name was taken before and may be repeated once more for nothing,
-- and counts the repeat.
local function use_repeat(base, known)
  local used = redis.call('GET', known)
  local of_caller = tonumber(redis.call('GET', repeats_key(base)) or '0')
  if not used or tonumber(used) >= REPEATS or of_caller >= REPEATS_OF_CALLER then
    return false
  end
  redis.call('INCR', known)
  if redis.call('INCR', repeats_key(base)) == 1 then
    redis.call('EXPIRE', repeats_key(base), 60)
  end
  return true
end
