-- Finds the strands through which a message is reached from the selected path. It walks from the message
-- to the path, some messages in each call.
--
-- Keys:       session, messages, path, branches, index, open
-- Arguments:  owner
--             generation   of the waiting turn for which this is done, or - for the owner
--             id           of the message
--             number       of the message at which an earlier call stopped; else empty
-- Reply:      ok <heads>              the first messages of the strands, those farthest from the path
--                                     first; none where the message is on the path
--             more <number> <heads>   the walk goes on at this message
--             none     the session has no such message, or its branches have changed meanwhile
--             absent   the owner has no such session
-- Called by:  Store::select

-- Messages that one call walks over, at most.
local STEPS = 250

register {
  name = 'trace',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages', 'path', 'branches', 'index', 'open' },
  arguments = { 'owner', 'generation', 'id', 'number' },
  run = function(keys, args)
    if not owned_or_held(keys, args.owner, args.generation) then
      return { 'absent' }
    end
    local number = tonumber(args.number)
    if not number then
      number = number_of(keys, args.id)
      if number and position_of(keys, number) then
        return { 'ok' }
      end
    end
    local heads, bytes = {}, 0
    for _ = 1, STEPS do
      local entry = number and redis.call('HGET', keys.messages, number)
      if not entry then
        return { 'none' }
      end
      local parent = tonumber(string.match(entry, '^%d+'))
      if redis.call('HEXISTS', keys.branches, number) == 1 then
        heads[#heads + 1] = tostring(number)
        if parent == 0 or position_of(keys, parent) then
          return { 'ok', unpack(heads) }
        end
      end
      number = parent
      bytes = bytes + #entry
      if bytes > BATCH_BYTES then
        break
      end
    end
    return { 'more', tostring(number), unpack(heads) }
  end,
}
