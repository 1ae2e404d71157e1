-- Cancels a generation: the named one, or else the running one, or else the oldest that waits. The
-- first of cancel and finish wins. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             generation   or - for any
--             header       of the message, as JSON with GENERATION, MODEL and WRITERS to fill in
--             tag, event   of the cancelled event
--             again        1 in a repeat after a failover: a turn that is not there is kept from
--                          coming back, and the session may have become a user's
--             transfer_tag of the session's transfer to this owner, where there was one
-- Reply:      cancelled <generation> running|waiting
--             none     there is nothing to cancel
--             absent   the owner has no such session
-- Called by:  Store::cancel
register {
  name = 'cancel',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'header', 'tag', 'event', 'again', 'transfer_tag' },
  run = function(keys, args)
    local requested, of_owner = args.generation, owned
    if args.again == '1' then
      transfer_again(keys, args.owner, args.transfer_tag)
      of_owner = owned_before
    end
    if args.again == '1' and redis.call('HEXISTS', keys.open, open_field(keys, requested)) == 0 then
      redis.call('SET', ended_key(keys, requested), 'cancel', 'NX', 'EX', ENDED_SECONDS)
      return { 'none' }
    end
    local fields = of_owner(keys, args.owner, 'generation', 'writers', 'last_cancel')
    if not fields then
      return { 'absent' }
    end
    local last = words(fields[3] or '')
    if last[1] == args.tag then
      -- A repeat after a lost reply.
      return { 'cancelled', last[2], last[3] }
    end
    local function cancelled(generation, state)
      redis.call('HSET', keys.session, 'last_cancel', args.tag .. ' ' .. generation .. ' ' .. state)
      keep(keys)
      return { 'cancelled', generation, state }
    end
    if fields[1] and (requested == '-' or requested == fields[1]) then
      local model = cjson.encode(cjson.decode(redis.call('HGET', keys.messages, 'turn')).model)
      local fill = { GENERATION = fields[1], MODEL = model, WRITERS = fields[2] }
      push_event(keys, args.tag, 'cancelled', fields[1], args.event)
      close_running(keys, fields[1], (string.gsub(args.header, '%u%u%u%u%u+', fill)), 'cancel')
      return cancelled(fields[1], 'running')
    end
    local entry, header
    if requested == '-' then
      entry = redis.call('LINDEX', keys.waiting, 0)
      header = entry and words(entry)
    else
      entry, header = find_waiting(keys, requested)
    end
    if not entry then
      return { 'none' }
    end
    redis.call('LREM', keys.waiting, 1, entry)
    local question = take_waiting_question(keys, header[1])
    -- A question that was to be answered once more is that of another turn.
    if string.sub(header[5] or '', 1, 1) ~= '=' then
      count_images(keys, question, -1)
    end
    release(keys, header[1], 'cancel')
    push_event(keys, args.tag, 'cancelled', header[1], args.event)
    return cancelled(header[1], 'waiting')
  end,
}
