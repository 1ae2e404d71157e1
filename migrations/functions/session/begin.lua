-- Makes a waiting turn the running one, if no turn runs and none waits before it.
--
-- Keys:       those of the session
-- Arguments:  owner, generation, fence   of the holder
-- Reply:      began     the turn is the running one
--             waiting   another turn runs, or waits before it
--             gone      the turn has ended, or another replica holds it
-- Called by:  Store::begin
register {
  name = 'begin',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence' },
  run = function(keys, args)
    local fields = owned_before(keys, args.owner, 'generation', 'fence')
    if not fields then
      return 'gone'
    end
    if fields[1] == args.generation then
      return fields[2] == args.fence and 'began' or 'gone'
    end
    local entry, waiting = find_waiting(keys, args.generation)
    if not entry or waiting[2] ~= args.fence then
      return 'gone'
    end
    if fields[1] or redis.call('LINDEX', keys.waiting, 0) ~= entry then
      return 'waiting'
    end
    redis.call('LPOP', keys.waiting)
    local question, turn = take_waiting_question(keys, args.generation)
    push_whole_message(keys, question)
    make_running(keys, {
      generation = args.generation, fence = args.fence, replica = waiting[3], turn = turn,
    })
    return 'began'
  end,
}
