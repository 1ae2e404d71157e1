-- Returns a granted slot that its ticket cannot use. The ticket keeps its position.
--
-- Keys:       queue
-- Arguments:  generation, replica   of the ticket
--             host, grant           the host and the number of the grant
--             has_text              1 where the answer has text, else 0
--             excluded_ms           how long the ticket does not get this host
--             full_ms               how long no ticket gets it, because the host is full; or 0
-- Reply:      as queue_join, except full and crowded
-- Called by:  QueueStore::give_back
register {
  name = 'queue_give_back',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'generation', 'replica', 'host', 'grant', 'has_text', 'excluded_ms', 'full_ms' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local ticket = read_ticket(base, args.generation)
    if not ticket or ticket.replica ~= args.replica then
      return { 'gone' }
    end
    if ticket.host == args.host and ticket.grants == args.grant then
      vacate(base, ticket)
      if args.has_text == '1' and ticket.first ~= '1' then
        ticket.first, ticket.score = '1', score(base, 0, true)
        redis.call('HSET', ticket.key, 'first', '1', 'score', ticket.score)
      end
      redis.call('HSET', ticket.key, 'not:' .. args.host, now + tonumber(args.excluded_ms))
      if tonumber(args.full_ms) > 0 then
        redis.call('HSET', host_key(base, args.host), 'full', now + tonumber(args.full_ms))
      end
      enter_queue(base, ticket)
    end
    local hosts = read_hosts(base, now)
    dispatch(base, hosts, now, args.generation)
    return status_of(base, hosts, read_ticket(base, args.generation), now)
  end,
}
