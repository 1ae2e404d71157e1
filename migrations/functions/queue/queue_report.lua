-- Replaces a replica's report of the model hosts.
--
-- Keys:       queue
-- Arguments:  replica
--             digest   of the report
--             hosts    JSON [{name, slots, via, models: {name: loaded}}]
-- Reply:      ok
-- Called by:  QueueStore::report
register {
  name = 'queue_report',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'queue' },
  arguments = { 'replica', 'digest', 'hosts' },
  run = function(keys, args)
    local base, now = keys.queue, now_ms()
    report_hosts(base, args.replica, cjson.decode(args.hosts))
    redis.call('HSET', reports_key(base), args.replica, args.digest)
    dispatch(base, read_hosts(base, now), now)
    return 'ok'
  end,
}
