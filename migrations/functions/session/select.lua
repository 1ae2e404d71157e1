-- Selects the branch of a message: the path leads through the message from now on, and below it on as it
-- was selected last. A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner
--             generation   of the waiting turn that goes to the branch, and is the next one to begin; or -
--                          for the owner
--             id           of the message
--             tag, event   of the selected event
--             tip, epoch   in a repeat after a failover, the last message before the selection and the
--                          epoch, as the first reply had them: where the session has gone on since,
--                          nothing is selected; else empty
--             heads        the first messages of strands that are selected one after another, as
--                          `trace` found them
-- Reply:      ok <tip before> <epoch> <1 where another branch was selected, else 0>
--             moved    the branches have changed since, or more strands are to be selected: `trace` is
--                      called again
--             busy     a turn runs or waits
--             none     the session has no such message
--             absent   the owner has no such session
-- Called by:  Store::select

register {
  name = 'select',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'id', 'tag', 'event', 'tip', 'epoch' },
  rest = 'heads',
  run = function(keys, args)
    local fields = owned_or_held(keys, args.owner, args.generation)
    if not fields then
      return { 'absent' }
    end
    local running, epoch = fields[1], fields[2]
    local number = number_of(keys, args.id)
    if not number or fields[3] then
      return { 'none' }
    end
    local next_turn = redis.call('LINDEX', keys.waiting, 0)
    next_turn = next_turn and words(next_turn)[1] or '-'
    local _, tip = kin_of(keys, last_number(keys))
    tip = tip or '-'
    if args.epoch ~= '' and (epoch ~= args.epoch or tip ~= args.tip or running or next_turn ~= '-') then
      return { 'ok', tip, epoch, '0' }
    end
    if running or next_turn ~= args.generation then
      return { 'busy' }
    end
    if position_of(keys, number) then
      return { 'ok', tip, epoch, '0' }
    end
    local has_changed = false
    for _, head in ipairs(args.heads) do
      if not select_strand(keys, tonumber(head)) then
        break
      end
      has_changed = true
    end
    if has_changed then
      push_event(keys, args.tag, 'selected', '-', args.event)
      keep(keys)
    end
    if not position_of(keys, number) then
      return { 'moved' }
    end
    return { 'ok', tip, epoch, '1' }
  end,
}
