-- Makes an anonymous session a user's, with its turns, its messages and its idempotency keys. From
-- then on an anonymous caller finds no such session; the holder of its running turn still writes.
-- A repeat changes nothing.
--
-- Keys:       those of the session
-- Arguments:  owner               the user
--             tag                 of the transferred event, the same in each repeat
--             epoch               in a repeat after a failover, that of the first reply; else empty
--             tombstone_seconds   where such a repeat finds no session: how long it keeps the owner
--                                 of a session whose turns are yet to be restored
-- Reply:      transferred <epoch>
--             owned <epoch>   the session is the user's already
--             absent          there is no such session, or it is another user's
-- Called by:  Store::transfer
register {
  name = 'transfer',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'owner', 'tag', 'epoch', 'tombstone_seconds' },
  run = function(keys, args)
    local again = args.epoch ~= ''
    local fields = session_fields(keys, 'owner', 'deleted', 'epoch')
    if not fields[1] and again then
      redis.call('HSET', keys.session, 'owner', args.owner, 'transferred', args.tag, 'deleted', 1,
        'epoch', args.epoch, 'events', 0, 'tag', '0', 'event_bytes', 0)
      redis.call('EXPIRE', keys.session, args.tombstone_seconds)
      return { 'absent' }
    end
    if fields[1] == args.owner and not fields[2] then
      if again then
        -- The user has created the lost session again; turns from before are yet to be restored.
        redis.call('HSETNX', keys.session, 'transferred', args.tag)
      end
      return { 'owned', fields[3] }
    end
    if fields[1] ~= ANONYMOUS or (fields[2] and not again) then
      return { 'absent' }
    end
    transfer(keys, args.owner, args.tag)
    return { 'transferred', fields[3] }
  end,
}
