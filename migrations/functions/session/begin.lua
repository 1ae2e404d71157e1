-- Makes a waiting turn the running one, if no turn runs and none waits before it.
--
-- Keys:       those of the session
-- Arguments:  owner, generation, fence   of the holder
-- Reply:      began     the turn is the running one
--             waiting   another turn runs, or waits before it
--             gone      the turn has ended, or another replica holds it
--             elsewhere the turn goes to a branch that is to be selected first
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
    local anchor, position, refusal = waiting[5], nil, nil
    if anchor then
      position, refusal = anchor_position(keys, anchor, tonumber(waiting[6] or nil))
      if refusal == 'elsewhere' then
        return 'elsewhere'
      elseif refusal and redis.call('HINCRBY', keys.session, 'orphaned', 1) < ORPHAN_TRIES then
        -- A failover lost the message, and its writer writes it again.
        return 'waiting'
      end
      redis.call('HDEL', keys.session, 'orphaned')
    end
    redis.call('LPOP', keys.waiting)
    local question, turn = take_waiting_question(keys, args.generation)
    if refusal then
      -- The message does not come back: the question goes to the end of the path, as a new one where it
      -- was to be answered once more.
      if string.sub(anchor, 1, 1) == '=' then
        question = string.gsub(question, '"i":"[%x-]+"', '"i":"' .. question_of(args.generation) .. '"', 1)
        count_images(keys, question, 1)
      end
      anchor = nil
    end
    if take_place(keys, anchor, position) then
      push_whole_message(keys, question)
    end
    make_running(keys, {
      generation = args.generation, fence = args.fence, replica = waiting[3], turn = turn,
    })
    keep(keys)
    return 'began'
  end,
}
