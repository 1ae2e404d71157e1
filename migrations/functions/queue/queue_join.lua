-- Adds a ticket to the queue, and grants it a slot where one is free. A repeat returns the ticket's
-- status. After a takeover the ticket keeps its slot where its new replica can use it, else its
-- position. A ticket whose session has become a user's waits as that user's from then on.
--
-- Keys:       queue
-- Arguments:  generation, replica, user, source, model, session   of the ticket
--             prefixes                       digests of the conversation and its beginnings, the
--                                            longest first, or empty
--             networks                       around the source, the smallest first
--             running_limit                  tickets of the source that may run, or 0; each wider
--                                            network may have twice those of the last one
--             has_text                       1 where the answer has text, else 0
--             start                          of a ticket that Redis lost, or empty
--             waiting_limit, source_limit    tickets that may wait, in all and of one source; each
--                                            wider network may have twice those of the last one
-- Reply:      granted <host> <number of the grant> <start>
--             waiting <position> <eta in ms or -1> <start> <reachable hosts with the model>
--             full <ms until there is room, or -1>
--             crowded <ms until there is room for its source or network, or -1>
--             gone   another replica holds the ticket
-- Called by:  QueueStore::join
register {
  name = 'queue_join',
  version = 1,
  flags = {},
  keys = { 'queue' },
  arguments = { 'generation', 'replica', 'user', 'source', 'networks', 'running_limit', 'model',
    'session', 'prefixes', 'has_text', 'start', 'waiting_limit', 'source_limit' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local generation, replica, model = args.generation, args.replica, args.model
    local first = args.has_text == '1'
    local hosts = read_hosts(base, now)
    local ticket = read_ticket(base, generation)
    local is_same = ticket and ticket.user == args.user
    if ticket and ticket.replica == replica
      and (ticket.host or is_same and (not first or ticket.first == '1')) then
      dispatch(base, hosts, now, generation)
      return status_of(base, hosts, read_ticket(base, generation), now)
    end
    if ticket and ticket.replica and ticket.replica ~= replica and args.start ~= '' then
      -- Another replica took the ticket over meanwhile.
      return { 'gone' }
    end
    if ticket then
      -- The ticket was taken over, or its answer has text now: it keeps its position or a better
      -- one.
      local held_host = ticket.host
      vacate(base, ticket)
      ticket.replica = replica
      if not is_same then
        promote(base, ticket)
        ticket.user, ticket.source = args.user, args.source
        ticket.networks, ticket.running_limit = args.networks, args.running_limit
        redis.call('HSET', ticket.key, 'user', ticket.user, 'source', ticket.source,
          'networks', ticket.networks, 'running_limit', ticket.running_limit,
          'finish_before', ticket.start)
        charge(base, ticket.user, tonumber(ticket.start))
      end
      if first and ticket.first ~= '1' then
        ticket.first, ticket.score = '1', score(base, 0, true)
      end
      redis.call('PERSIST', ticket.key)
      redis.call('HSET', ticket.key, 'replica', replica, 'first', ticket.first,
        'score', ticket.score)
      if held_host then
        hosts = read_hosts(base, now)
        local host = usable_host(hosts, held_host, ticket, now)
        if host then
          grant(base, ticket, host, now, generation)
          return status_of(base, hosts, read_ticket(base, generation), now)
        end
      end
    else
      -- The limits do not apply to a ticket that was accepted before.
      if args.start == '' and not first then
        local models = waiting_models(base)
        local limit = tonumber(args.waiting_limit)
        if count_waiting(base, models) >= limit then
          local view = outlook(base, hosts, models, model, replica, now)
          return { 'full', promise_room(base, view, limit, now) }
        end
        local network = crowded_network(base, args)
        if network then
          return { 'crowded', network_eta_ms(base, hosts, models, network, replica, now) }
        end
      end
      local finish = finish_of(base, args.user)
      local start = tonumber(args.start) or fair_start(base, hosts, args, finish)
      charge(base, args.user, start)
      ticket = create_ticket(base, args, start, first, score(base, start, first))
      if args.start == '' and args.networks ~= '' then
        redis.call('HSET', ticket.key, 'finish_before', finish)
      end
      if args.prefixes ~= '' then
        redis.call('HSET', ticket.key, 'prefixes', args.prefixes)
      end
    end
    enter_queue(base, ticket)
    dispatch(base, hosts, now, generation)
    return status_of(base, hosts, read_ticket(base, generation), now)
  end,
}
