-- Returns whether the queue has room for a ticket of a model and of a source, as queue_join checks it.
--
-- Keys:       queue
-- Arguments:  replica, model
--             source, networks               as queue_join
--             waiting_limit, source_limit    as queue_join
-- Reply:      room | full <ms until there is room, or -1>
-- Called by:  QueueStore::room
register {
  name = 'queue_room',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'replica', 'model', 'source', 'networks', 'waiting_limit', 'source_limit' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local models, limit = waiting_models(base), tonumber(args.waiting_limit)
    if count_waiting(base, models) >= limit then
      local view = outlook(base, read_hosts(base, now), models, args.model, args.replica, now)
      return { 'full', tostring(promise_room(base, view, limit, now)) }
    end
    local network = crowded_network(base, args)
    if network then
      local hosts = read_hosts(base, now)
      return { 'full', tostring(network_eta_ms(base, hosts, models, network, args.replica, now)) }
    end
    return { 'room' }
  end,
}
