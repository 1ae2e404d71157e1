-- Parks some tickets of a replica that is gone, unless its heartbeat has moved since. The tickets
-- keep their positions, and for a moment their slots, for the replicas that take the turns over.
--
-- Keys:       queue, heartbeats
-- Arguments:  replica
--             counter   of its heartbeat as it was observed, empty where it had none; `self` where
--                       the replica frees its own tickets
-- Reply:      ok      nothing is left
--             more    call again
--             alive   the heartbeat has moved
-- Called by:  QueueStore::free, QueueStore::sign_off

-- The number of tickets that one call frees.
local FREED_AT_ONCE = 30

-- Returns some fields of a hash, at least one unless it is empty, without reading all of a large
-- one.
local function some_fields(key)
  local from, fields = '0', {}
  repeat
    local scan = redis.call('HSCAN', key, from, 'COUNT', FREED_AT_ONCE)
    for i = 1, #scan[2], 2 do
      fields[#fields + 1] = scan[2][i]
    end
    from = scan[1]
  until #fields > 0 or from == '0'
  return fields
end

register {
  name = 'queue_free',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue', 'heartbeats' },
  arguments = { 'replica', 'counter' },
  run = function(keys, args)
    local base, now, replica = keys.queue, now_ms(), args.replica
    local counter = redis.call('HGET', keys.heartbeats, replica)
    if args.counter ~= 'self' and counter and counter ~= args.counter then
      return 'alive'
    end
    local held = replica_key(base, replica)
    local some = some_fields(held)
    for i = 1, math.min(#some, FREED_AT_ONCE) do
      local generation = some[i]
      local ticket = read_ticket(base, generation)
      if ticket and ticket.replica == replica and ticket.host then
        park(base, ticket, now)
      elseif ticket and ticket.replica == replica then
        vacate(base, ticket)
        promote(base, ticket)
        redis.call('HDEL', ticket.key, 'replica')
        redis.call('EXPIRE', ticket.key, PARKED_SECONDS)
      else
        redis.call('HDEL', held, generation)
      end
    end
    if redis.call('EXISTS', held) == 1 then
      -- No slot is granted before all are freed, because many would go to the same replica again.
      return 'more'
    end
    report_hosts(base, replica, {})
    redis.call('HDEL', reports_key(base), replica)
    dispatch(base, read_hosts(base, now), now)
    return 'ok'
  end,
}
