-- Lists some of the generations whose tickets a replica holds. A generation may be listed twice.
--
-- Keys:       queue
-- Arguments:  replica
--             from   the cursor of the last reply, '0' at first
-- Reply:      <cursor of the next call, '0' at the end>, then generations
-- Called by:  QueueStore::holdings

-- The approximate number of tickets that one call reads.
local SCANNED_AT_ONCE = 250

register {
  name = 'queue_holdings',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'queue' },
  arguments = { 'replica', 'from' },
  run = function(keys, args)
    local held = replica_key(keys.queue, args.replica)
    local scan = redis.call('HSCAN', held, args.from, 'COUNT', SCANNED_AT_ONCE)
    local reply = { scan[1] }
    for i = 1, #scan[2], 2 do
      reply[#reply + 1] = scan[2][i]
    end
    return reply
  end,
}
