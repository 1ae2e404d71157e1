-- Removes a replica that is gone, unless its heartbeat has moved since, and notes for a while how it went
-- and how many of its turns were taken over. Each replica that took some calls this once.
--
-- Keys:       heartbeats
--             figures   of the replicas, as heartbeat has them
--             gone      hash: replica → the time of Redis in milliseconds, the reason, the number of turns
--                       that were taken over, and the last figures
-- Arguments:  replica
--             counter   of the heartbeat as it was observed
--             reason    how it was noticed
--             turns     that the caller took over
-- Reply:      ok
-- Called by:  MembershipStore::remove_replica

-- The number of replicas that are noted, the last ones, and for how long after the last of them.
local NOTED = 16
local NOTED_SECONDS = 600

-- Forgets the replica that went first, where too many are noted.
local function forget_first(gone)
  if redis.call('HLEN', gone) <= NOTED then
    return
  end
  local noted, first, first_at = redis.call('HGETALL', gone)
  for i = 1, #noted, 2 do
    local at = tonumber(string.match(noted[i + 1], '^%d+'))
    if not first or at < first_at then
      first, first_at = noted[i], at
    end
  end
  redis.call('HDEL', gone, first)
end

register {
  name = 'remove_replica',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'heartbeats', 'figures', 'gone' },
  arguments = { 'replica', 'counter', 'reason', 'turns' },
  run = function(keys, args)
    local replica, turns = args.replica, tonumber(args.turns)
    local at, reason, figures
    if redis.call('HGET', keys.heartbeats, replica) == args.counter then
      local time = redis.call('TIME')
      at = time[1] * 1000 + math.floor(time[2] / 1000)
      reason = args.reason
      figures = string.match(redis.call('HGET', keys.figures, replica) or '', '^%d+ (.*)$') or ''
      redis.call('HDEL', keys.heartbeats, replica)
      redis.call('HDEL', keys.figures, replica)
    elseif turns > 0 then
      -- Another replica was first.
      local before
      at, reason, before, figures =
        string.match(redis.call('HGET', keys.gone, replica) or '', '^(%d+) (%S+) (%d+) (.*)$')
      turns = turns + (tonumber(before) or 0)
    end
    if at then
      redis.call('HSET', keys.gone, replica,
        string.format('%.0f %s %d %s', at, reason, turns, figures))
      redis.call('EXPIRE', keys.gone, NOTED_SECONDS)
      forget_first(keys.gone)
    end
    return 'ok'
  end,
}
