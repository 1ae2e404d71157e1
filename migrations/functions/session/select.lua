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
--             from         the message at which an earlier call stopped; else empty
-- Reply:      ok <tip before> <epoch> <1 where another branch was selected, else 0>
--             more <number, or empty>   the selection goes on at this message, or at the beginning: there
--                      is more to look into or to join than one call may. The path leads to the branch of
--                      the message only once a call has replied ok
--             busy     a turn runs or waits
--             none     the session has no such message
--             absent   the owner has no such session
-- Called by:  Store::select

-- The work that one call may do, in steps: one for each chain that it looks into, and JOIN_STEPS for each
-- strand that it joins with the next one.
local STEPS = 120
local JOIN_STEPS = 4

-- Looks for the strand of a message, in at most so many steps. Returns its head, the message before that
-- and its member of `chains`; nil where the message is on the path, or where the steps are used up.
-- Returns behind that the steps that are left, and the oldest message that was reached, which is in the
-- same strand.
local function find_strand(keys, number, steps)
  if number == 0 or position_of(keys, number) then
    return nil, steps, number
  end
  local chain = chain_of(keys, number)
  while number > 0 and steps > 0 do
    local of_chain = 's' .. chain
    local member = member_below(keys, of_chain .. digits(number) .. '~', of_chain)
    if member then
      local head, parent = string.sub(member, 10, 17), string.sub(member, 18)
      return { head = tonumber(head, 16), parent = tonumber(parent, 16), member = member }, steps, number
    end
    steps = steps - 1
    number, chain = before_chain(keys, chain)
  end
  return nil, steps, number
end

-- Removes a strand from where it is stored, and returns it.
local function take_strand(keys, found)
  local strand = redis.call('HGET', keys.branches, found.head)
  redis.call('HDEL', keys.branches, found.head)
  redis.call('ZREM', keys.chains, found.member)
  return strand
end

-- Returns the number of entries of a strand up to this message, which is one of them.
local function entries_up_to(strand, number)
  local low, high = 1, #strand / ENTRY_BYTES
  while low < high do
    local middle = math.floor((low + high) / 2)
    if struct.unpack('>I4', strand, (middle - 1) * ENTRY_BYTES + 1) < number then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

-- Returns the parts of a strand as one, which are listed from its end on.
local function joined(parts)
  local strand = {}
  for i = #parts, 1, -1 do
    strand[#strand + 1] = parts[i]
  end
  return table.concat(strand)
end

-- Leads the path through a message: joins its strand with the one in which that begins, and so on, and
-- at last with the path. Each text is read and written once. Returns nil once it has, or the message at
-- which the next call goes on.
local function lead_path_to(keys, number)
  local parts, head, steps = {}, nil, STEPS
  while true do
    local found, left, reached = find_strand(keys, number, steps)
    steps = left
    if found then
      local strand = take_strand(keys, found)
      local bytes = head and entries_up_to(strand, number) * ENTRY_BYTES or #strand
      if bytes < #strand then
        put_strand(keys, string.sub(strand, bytes + 1), number)
        strand = string.sub(strand, 1, bytes)
      end
      parts[#parts + 1] = strand
      head, number, steps = found.head, found.parent, steps - JOIN_STEPS
    else
      local position = steps > 0 and (number == 0 and -1 or position_of(keys, number))
      if head and position then
        replace_rest(keys, position + 1, number, parts)
        return nil
      elseif head then
        put_strand(keys, joined(parts), number)
      end
      return reached == number and head or reached
    end
  end
end

register {
  name = 'select',
  version = 1,
  flags = {},
  keys = SESSION_KEYS,
  arguments = { 'owner', 'generation', 'id', 'tag', 'event', 'tip', 'epoch', 'from' },
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
    local next_number = lead_path_to(keys, tonumber(args.from) or number)
    if next_number then
      return { 'more', tostring(next_number) }
    end
    push_event(keys, args.tag, 'selected', '-', args.event)
    keep(keys)
    -- The strand of a message at which an earlier call stopped is on the path. That of this one may have
    -- another way to it.
    if not position_of(keys, number) then
      return { 'more', '' }
    end
    return { 'ok', tip, epoch, '1' }
  end,
}
