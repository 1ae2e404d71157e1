-- Writes text of the answer at its offset, and publishes it where another replica may listen. Text
-- that is stored already is published again and changes nothing. Without text, it only checks that
-- the writer may continue.
--
-- Keys:       session, answer
-- Arguments:  owner, generation, fence   of the writer
--             revision                   that the writer left last
--             offset                     bytes of the answer before the text
--             listens                    1 where the writer's replica is certain to be subscribed
--                                        to the session, and takes the piece from this reply, else 0
--             text
-- Reply:      ok                  without text
--             ok <number> <tag> 0|1   the number and tag of the last event before the text, and
--                                 whether the text is published: it is not where only the writer's
--                                 replica is subscribed
--             fenced         the turn is not this writer's
--             outdated       Redis has another revision
--             hole <length>  the answer has only so many bytes
-- Called by:  Store::append
register {
  name = 'append',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'session', 'answer' },
  arguments = { 'owner', 'generation', 'fence', 'revision', 'offset', 'listens', 'text' },
  run = function(keys, args)
    local fields = of_writer(keys, args, 'revision', 'events', 'tag')
    if not fields then
      return { 'fenced' }
    end
    if fields[3] ~= args.revision then
      return { 'outdated' }
    end
    local offset, length = tonumber(args.offset), redis.call('STRLEN', keys.answer)
    if offset > length then
      return { 'hole', tostring(length) }
    end
    if #args.text == 0 then
      return { 'ok' }
    end
    if offset + #args.text > length then
      redis.call('SETRANGE', keys.answer, offset, args.text)
      if length == 0 then
        -- The answer expires with its session, if the turn never ends.
        local left = redis.call('TTL', keys.session)
        if left > 0 then
          redis.call('EXPIRE', keys.answer, left)
        end
      end
    end
    if args.listens == '1' then
      local counted = redis.pcall('PUBSUB', 'SHARDNUMSUB', keys.session)
      if not counted.err and counted[2] <= 1 then
        return { 'ok', fields[4], fields[5], '0' }
      end
    end
    redis.call('SPUBLISH', keys.session,
      'p' .. args.generation .. ' ' .. args.offset .. ' ' .. fields[4] .. ' ' .. fields[5] .. '\n'
        .. args.text)
    return { 'ok', fields[4], fields[5], '1' }
  end,
}
