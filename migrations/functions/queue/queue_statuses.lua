-- Returns the status of some tickets.
--
-- Keys:       queue
-- Arguments:  replica       that holds the tickets
--             generations   of the tickets
-- Reply:      for each ticket as queue_join, except full and crowded
-- Called by:  QueueStore::statuses
register {
  name = 'queue_statuses',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'queue' },
  arguments = { 'replica' },
  rest = 'generations',
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local hosts, models, views, reply = read_hosts(base, now), waiting_models(base), {}, {}
    for i, generation in ipairs(args.generations) do
      local found = redis.call('HMGET', ticket_key(base, generation), 'replica', 'host', 'grants',
        'start', 'model', 'score')
      if found[1] ~= args.replica then
        reply[i] = { 'gone' }
      elseif found[2] then
        reply[i] = { 'granted', found[2], tonumber(found[3]), found[4] }
      else
        local model = found[5]
        views[model] = views[model] or outlook(base, hosts, models, model, args.replica, now)
        local at = position(base, views[model], found[6])
        reply[i] = { 'waiting', at, eta_ms(views[model], at), found[4], views[model].hosts }
      end
    end
    return reply
  end,
}
