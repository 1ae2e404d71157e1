-- Ends the running generation: its answer becomes a message. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner, generation, fence   of the writer
--             revision                   that the writer left last
--             length                     bytes of the whole answer
--             header                     of the message, as JSON
--             now
--             events                     tag, kind and JSON of each event to write
-- Reply:      ok | fenced | outdated | hole <length>, as append; outdated also where the answer is
--             longer than the writer believes
-- Called by:  Store::finish
register {
  name = 'finish',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence', 'revision', 'length', 'header', 'now' },
  rest = 'events',
  run = function(keys, args)
    local fields = of_writer(keys, args, 'revision')
    if not fields then
      local ended_by = redis.call('GET', ended_key(keys, args.generation))
      return { ended_by == args.fence and 'ok' or 'fenced' }
    end
    local length = redis.call('STRLEN', keys.answer)
    if fields[3] ~= args.revision or length > tonumber(args.length) then
      return { 'outdated' }
    end
    if length < tonumber(args.length) then
      return { 'hole', tostring(length) }
    end
    for i = 1, #args.events, 3 do
      local kind = args.events[i + 1]
      push_event(keys, args.events[i], kind, args.generation, args.events[i + 2],
        kind == 'ended' and args.header or nil)
      if kind == 'ended' then
        -- Calls of tools are an answer without text.
        redis.call('HDEL', keys.session, 'unanswered')
      end
    end
    close_running(keys, args.generation, args.header, args.fence)
    redis.call('HSET', keys.session, 'updated', args.now)
    keep(keys)
    return { 'ok' }
  end,
}
