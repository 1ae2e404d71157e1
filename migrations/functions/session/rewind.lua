-- Takes back the answer beyond a length, and replaces the revision.
--
-- Keys:       those of the session
-- Arguments:  owner, generation, fence   of the writer
--             revision                   that the writer left last
--             length                     bytes of the answer that stay
--             tag, event                 of the claimed event; the tag becomes the revision
--             published                  1 where readers may have seen more than Redis holds: the
--                                        event is written in any case
-- Reply:      ok | fenced | outdated, as append
-- Called by:  Store::rewind
register {
  name = 'rewind',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence', 'revision', 'length', 'tag', 'event', 'published' },
  run = function(keys, args)
    local fields = of_writer(keys, args, 'revision')
    if not fields then
      return { 'fenced' }
    end
    if fields[3] == args.tag then
      -- A repeat after a lost reply.
      return { 'ok' }
    elseif fields[3] ~= args.revision then
      return { 'outdated' }
    end
    local length, is_taken_back = tonumber(args.length), args.published == '1'
    if redis.call('STRLEN', keys.answer) > length then
      local kept = length > 0 and redis.call('GETRANGE', keys.answer, 0, length - 1) or ''
      redis.call('SET', keys.answer, kept, 'KEEPTTL')
      is_taken_back = true
    end
    if is_taken_back then
      push_event(keys, args.tag, 'claimed', args.generation, args.event)
    end
    redis.call('HSET', keys.session, 'revision', args.tag)
    return { 'ok' }
  end,
}
