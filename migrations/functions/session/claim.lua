-- Claims a turn from the replica that holds it, if the fence is still the same. A repeat changes
-- nothing.
--
-- Keys:       those of the session
-- Arguments:  generation
--             replaced_fence   of the previous holder
--             fence, replica   of the new holder
--             tag, event       of the claimed event, with LENGTH to fill in
-- Reply:      other   the turn has ended, or another replica claimed it first
--             running|waiting <turn> <owner> <epoch> <writers> <continuations as JSON>
--             <runner, or empty> <question>, and the messages that the turn brought instead of a
--             stored history: the question is <json header>\n<content>, the others are as stored
-- Called by:  Store::claim

-- Returns the reply for a claimed turn.
local function claimed(keys, state, turn, question)
  local fields = session_fields(keys, 'owner', 'epoch', 'writers', 'own_messages')
  local continued, runner = '[]', ''
  if state == 'running' then
    local noted = redis.call('HMGET', keys.messages, 'continued', 'runner')
    continued, runner = noted[1] or continued, noted[2] or runner
  end
  local reply = { state, turn, fields[1], fields[2], fields[3] or '0', continued, runner, question }
  local own = tonumber(fields[4] or '0')
  for from = 0, own - 1, FIELDS_AT_ONCE do
    local last = math.min(from + FIELDS_AT_ONCE, own) - 1
    local numbers = {}
    local path = redis.call('GETRANGE', keys.path, from * ENTRY_BYTES, (last + 1) * ENTRY_BYTES - 1)
    for at = 1, #path, ENTRY_BYTES do
      numbers[#numbers + 1] = struct.unpack('>I4', path, at)
    end
    -- A clear may have removed them.
    for _, message in ipairs(#numbers > 0 and redis.call('HMGET', keys.messages, unpack(numbers)) or {}) do
      reply[#reply + 1] = message
    end
  end
  return reply
end

register {
  name = 'claim',
  version = 1,
  flags = { 'allow-oom' },
  keys = SESSION_KEYS,
  arguments = { 'generation', 'replaced_fence', 'fence', 'replica', 'tag', 'event' },
  run = function(keys, args)
    local generation, fence, replica = args.generation, args.fence, args.replica
    local found = session_fields(keys, 'generation', 'fence')
    if found[1] == generation then
      if found[2] == args.replaced_fence then
        take(keys, generation, fence, replica, args.tag, args.event)
      elseif found[2] ~= fence then
        return { 'other' }
      end
      -- The question is the last message: none is added while a turn runs.
      return claimed(keys, 'running', redis.call('HGET', keys.messages, 'turn'),
        without_parent(message_at(keys, -1)))
    end
    local entry, header = find_waiting(keys, generation)
    if not entry then
      redis.call('HDEL', keys.open, open_field(keys, generation))
      return { 'other' }
    end
    if header[2] == args.replaced_fence then
      take_waiting(keys, entry, generation, fence, replica)
    elseif header[2] ~= fence then
      return { 'other' }
    end
    local stored = redis.call('HMGET', keys.messages, generation, 'turn:' .. generation)
    return claimed(keys, 'waiting', stored[2], stored[1])
  end,
}
