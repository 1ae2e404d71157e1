-- Stores a new API key. A repeat after a lost reply changes nothing.
--
-- Keys:       keys
-- Arguments:  digest   of the key
--             user     that it signs in
--             limit    the largest number of keys
-- Reply:      the identifier of the key; empty where there are too many
-- Called by:  ApiKeyStore::create
register {
  name = 'create_api_key',
  version = 1,
  flags = {},
  keys = { 'keys' },
  arguments = { 'digest', 'user', 'limit' },
  run = function(keys, args)
    local id = identifier(args.digest)
    if redis.call('HEXISTS', keys.keys, id) == 0 then
      if redis.call('HLEN', keys.keys) >= tonumber(args.limit) then
        return ''
      end
      local now = redis.call('TIME')[1]
      redis.call('HSET', keys.keys, id, record_of(args.digest, now, '0', args.user))
    end
    return id
  end,
}
