-- Publishes that the writer of a generation has closed its request to the model host.
--
-- Keys:       session
-- Arguments:  generation
-- Reply:      ok
-- Called by:  Store::upstream_closed
register {
  name = 'upstream_closed',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'session' },
  arguments = { 'generation' },
  run = function(keys, args)
    if redis.call('EXISTS', keys.session) == 1 then
      redis.call('HSET', keys.session, 'closed', args.generation)
    end
    redis.call('SPUBLISH', keys.session, 'x' .. args.generation)
    return 'ok'
  end,
}
