-- Lists API keys, some at a time.
--
-- Keys:       keys
-- Arguments:  cursor   of the reply before, or 0 to begin
-- Reply:      the next cursor, 0 at the end; then identifier, created, used and user of each key. A
--             key may come twice where the hash changes meanwhile.
-- Called by:  ApiKeyStore::list
register {
  name = 'list_api_keys',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'keys' },
  arguments = { 'cursor' },
  run = function(keys, args)
    local page = redis.call('HSCAN', keys.keys, args.cursor, 'COUNT', 100)
    local reply = { page[1] }
    for i = 1, #page[2], 2 do
      local _, created, used, user = fields_of(page[2][i + 1])
      reply[#reply + 1] = page[2][i]
      reply[#reply + 1] = created
      reply[#reply + 1] = used
      reply[#reply + 1] = user
    end
    return reply
  end,
}
