-- Returns whether the queue has room for a ticket of a model.
--
-- Keys:       queue
-- Arguments:  replica, model
--             waiting_limit   tickets that may wait
-- Reply:      room | full <ms until there is room, or -1>
-- Called by:  QueueStore::room
register {
  name = 'queue_room',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'replica', 'model', 'waiting_limit' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    local models, limit = waiting_models(base), tonumber(args.waiting_limit)
    if count_waiting(base, models) < limit then
      return { 'room' }
    end
    local view = outlook(base, read_hosts(base, now), models, args.model, args.replica, now)
    return { 'full', tostring(promise_room(base, view, limit, now)) }
  end,
}
