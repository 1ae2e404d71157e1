-- Publishes once that the answer begins, and stores the writer's revision: the tag of its last
-- event that shaped the answer. Where Redis has another revision, a failover lost that event, and
-- nothing may be written before it is published again.
--
-- The runner is stored with each start, because a failover may have lost it.
--
-- Keys:       those of the session
-- Arguments:  owner, generation, fence   of the writer
--             tag, event                 of the started event; the tag becomes the revision
--             runner                     of the answer's text, or empty
-- Reply:      ok | fenced (the turn is not this writer's)
-- Called by:  Store::start
register {
  name = 'start',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence', 'tag', 'event', 'runner' },
  run = function(keys, args)
    local fields = of_writer(keys, args, 'started', 'events', 'tag')
    if not fields then
      return { 'fenced' }
    end
    if not fields[3] then
      redis.call('HSET', keys.session, 'started', fields[4] .. ' ' .. fields[5])
      push_event(keys, args.tag, 'started', args.generation, args.event)
    end
    redis.call('HSET', keys.session, 'revision', args.tag)
    if args.runner ~= '' then
      redis.call('HSET', keys.messages, 'runner', args.runner)
    end
    return { 'ok' }
  end,
}
