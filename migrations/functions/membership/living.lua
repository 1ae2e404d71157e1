-- Lists which of some replicas have a heartbeat, and have not signed off.
--
-- Keys:       heartbeats
-- Arguments:  replicas
-- Reply:      those that are alive, as far as Redis knows
-- Called by:  MembershipStore::living
register {
  name = 'living',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'heartbeats' },
  arguments = {},
  rest = 'replicas',
  run = function(keys, args)
    local living = {}
    for _, replica in ipairs(args.replicas) do
      local counter = redis.call('HGET', keys.heartbeats, replica)
      if counter and tonumber(counter) >= 0 then
        living[#living + 1] = replica
      end
    end
    return living
  end,
}
