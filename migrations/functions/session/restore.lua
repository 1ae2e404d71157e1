-- Returns the state of a turn to a holder whose write was refused, and applies the acceptance or
-- the claim again where a failover lost it. A turn whose acceptance is restored waits at first, so
-- that earlier turns of its session can be restored before it.
--
-- Keys:       those of the session
-- Arguments:  as accept: owner, generation, fence, replica, turn, header, content, tag, event,
--             title, model, now, idle_seconds, own_conversation, pictured, anchor, key, request_digest,
--             key_seconds, conversation; and
--             epoch           of the session when the turn was accepted
--             replaced_fence  the fence that this one replaced by a claim, or -
--             claim_tag, claim_event   of that claim
--             event_number    of the accepted event
--             transfer_tag    of the session's transfer to this owner, where there was one
-- Reply:      kept      the turn is the holder's, and runs
--             claimed   the turn is the holder's again, and runs; also until the holder has started
--                       the answer, because the reply to an earlier call may be lost
--             waiting   the turn is the holder's, and waits; or it cannot be restored yet, and the
--                       holder calls again
--             gone      the turn has ended, or another replica holds it
-- Called by:  Store::restore
register {
  name = 'restore',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'fence', 'replica', 'turn', 'header', 'content', 'tag', 'event',
    'title', 'model', 'now', 'idle_seconds', 'own_conversation', 'pictured', 'anchor', 'key',
    'request_digest', 'key_seconds',
    'epoch', 'replaced_fence', 'claim_tag', 'claim_event', 'event_number', 'transfer_tag' },
  rest = 'conversation',
  run = function(keys, args)
    local generation, fence, replica = args.generation, args.fence, args.replica
    transfer_again(keys, args.owner, args.transfer_tag)
    local fields = session_fields(keys, 'owner', 'deleted', 'generation', 'fence', 'epoch',
      'transferred', 'importing')
    local found = {
      owner = fields[1], deleted = fields[2], generation = fields[3], transferred = fields[6],
    }
    if found.owner and not was_written_by(found.owner, found.transferred, args.owner) then
      return 'gone'
    end
    if redis.call('EXISTS', ended_key(keys, generation)) == 1 then
      return 'gone'
    end
    if found.owner and fields[5] ~= args.epoch then
      if epoch_time(fields[5]) >= epoch_time(args.epoch) then
        return 'gone'
      elseif not found.deleted then
        -- The failover lost the clear before this turn, too: until that is applied again, Redis has
        -- the history that was cleared.
        return 'waiting'
      end
    end
    if found.generation == generation then
      if fields[4] == fence then
        local has_started = redis.call('HEXISTS', keys.session, 'revision') == 1
        return (has_started or args.replaced_fence == '-') and 'kept' or 'claimed'
      elseif fields[4] ~= args.replaced_fence then
        return 'gone'
      end
      take(keys, generation, fence, replica, args.claim_tag, args.claim_event)
      return 'claimed'
    end
    local entry, header = find_waiting(keys, generation)
    if entry then
      if header[2] == args.replaced_fence then
        take_waiting(keys, entry, generation, fence, replica)
      elseif header[2] ~= fence then
        return 'gone'
      end
      return 'waiting'
    end
    -- The client has repeated the request already, as another turn.
    local known = known_key(keys, args.key)
    if known and known ~= generation then
      return 'gone'
    end
    if fields[7] then
      -- The failover lost an imported session, and its messages are being imported once more: the turn
      -- waits for them, or until they expire.
      return 'waiting'
    end
    found.anchor_parent = anchor_parent(keys, args.anchor)
    admit(keys, args, found, args.epoch, false, args.event_number)
    -- A clear from after this turn is applied again to all of it, though a later turn began it.
    redis.call('HSET', keys.session, 'began', 0)
    return 'waiting'
  end,
}
