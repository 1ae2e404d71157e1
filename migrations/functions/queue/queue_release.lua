-- Removes a ticket with its slot or position. The duration of the turn enters the mean of its host.
--
-- Keys:       queue
-- Arguments:  generation, replica   of the ticket
-- Reply:      ok | gone (the replica does not hold the ticket)
-- Called by:  QueueStore::release

-- The weight of the newest turn in the mean.
local NEWEST = 0.2

register {
  name = 'queue_release',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'generation', 'replica' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local ticket = read_ticket(base, args.generation)
    if not ticket or ticket.replica ~= args.replica then
      redis.call('HDEL', replica_key(base, args.replica), args.generation)
      return 'gone'
    end
    if ticket.host then
      local key = host_key(base, ticket.host)
      local duration = now - tonumber(ticket.since)
      local mean = tonumber(redis.call('HGET', key, 'turn_ms')) or duration
      redis.call('HSET', key, 'turn_ms', mean + (duration - mean) * NEWEST)
    elseif ticket.grants == nil then
      return_charge(base, ticket)
    end
    vacate(base, ticket)
    promote(base, ticket)
    redis.call('DEL', ticket.key)
    dispatch(base, read_hosts(base, now), now)
    return 'ok'
  end,
}
