-- Lists some of the generations in a replica's name. Some may come twice.
--
-- Keys:       queue
-- Arguments:  replica
--             from   where the last call ended, '0' at first
-- Reply:      <where to go on, '0' at the end>, then generations
-- Called by:  QueueStore::holdings

-- Holdings that one call reads, about.
local SCANNED_AT_ONCE = 250

register {
  name = 'queue_holdings',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'queue' },
  arguments = { 'replica', 'from' },
  run = function(keys, args)
    local held = keys.queue .. ':replica:' .. args.replica
    local scan = redis.call('HSCAN', held, args.from, 'COUNT', SCANNED_AT_ONCE)
    local reply = { scan[1] }
    for i = 1, #scan[2], 2 do
      reply[#reply + 1] = scan[2][i]
    end
    return reply
  end,
}
