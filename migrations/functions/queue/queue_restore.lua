-- Restores a slot that is in use and that Redis lost, beyond the capacity of its host if need be.
--
-- Keys:       queue
-- Arguments:  generation, replica, host             of the slot in use
--             user, source, networks, running_limit, model, session, start
--                                               of the ticket, as queue_join takes them
-- Reply:      the number of the grant | gone (another replica holds the ticket)
-- Called by:  QueueStore::restore
register {
  name = 'queue_restore',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'generation', 'replica', 'host', 'user', 'source', 'networks', 'running_limit',
    'model', 'session', 'start' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local ticket = read_ticket(base, args.generation)
    if ticket and ticket.replica and ticket.replica ~= args.replica then
      return 'gone'
    end
    if ticket and ticket.replica and ticket.host == args.host then
      return ticket.grants
    end
    local start = tonumber(args.start) or 0
    if ticket then
      vacate(base, ticket)
      redis.call('PERSIST', ticket.key)
    else
      ticket = create_ticket(base, args, start, true, '-1')
    end
    redis.call('HSET', ticket.key, 'replica', args.replica)
    ticket.replica = args.replica
    -- Redis may have lost the user's charge, too. Without it, a new ticket would start before those
    -- that waited.
    charge(base, args.user, start)
    local key = host_key(base, args.host)
    advance_time({ key = key, time = tonumber(redis.call('HGET', key, 'time')) or 0 }, start)
    local host = { name = args.host, held = held_key(base, args.host), used = 0 }
    hold_slot(base, ticket, host, now)
    return tostring(ticket.grants)
  end,
}
