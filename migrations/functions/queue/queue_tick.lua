-- Frees reserved slots that no replica took over, grants slots that became free with time, and
-- returns the state of the queue.
--
-- Keys:       queue
-- Arguments:  replica
-- Reply:      <digest of the replica's last report, or empty> <tickets that it holds>
--             <waiting tickets>, then name, slots and slots in use of each host
-- Called by:  QueueStore::tick
register {
  name = 'queue_tick',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'replica' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    free_reserved(base, now)
    local hosts = read_hosts(base, now)
    dispatch(base, hosts, now)
    local reply = {
      redis.call('HGET', reports_key(base), args.replica) or '',
      tostring(redis.call('HLEN', replica_key(base, args.replica))),
      tostring(count_waiting(base, waiting_models(base))),
    }
    for _, host in ipairs(hosts) do
      reply[#reply + 1] = host.name
      reply[#reply + 1] = tostring(host.slots)
      reply[#reply + 1] = tostring(host.used)
    end
    return reply
  end,
}
