-- Returns some of the unfinished turns of one bucket. A client chooses the bucket of its session, so one
-- bucket may hold any number of them. A turn may be returned twice; one that is unfinished from the first
-- call to the last is returned.
--
-- Keys:       open
-- Arguments:  from   the cursor of the last reply, '0' at first
-- Reply:      <cursor of the next call, '0' at the end>, then of each turn '<session> <generation>' and
--             '<replica> <fence>'
-- Called by:  Store::open_turns

-- The approximate number of turns that one call reads.
local TURNS_AT_ONCE = 500

register {
  name = 'open_turns',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'open' },
  arguments = { 'from' },
  run = function(keys, args)
    local scan = redis.call('HSCAN', keys.open, args.from, 'COUNT', TURNS_AT_ONCE)
    local reply = scan[2]
    table.insert(reply, 1, scan[1])
    return reply
  end,
}
