-- Revokes an API key.
--
-- Keys:       keys
-- Arguments:  id   the identifier of the key
-- Reply:      1 where there was such a key, else 0
-- Called by:  ApiKeyStore::revoke
register {
  name = 'revoke_api_key',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'keys' },
  arguments = { 'id' },
  run = function(keys, args)
    return redis.call('HDEL', keys.keys, args.id)
  end,
}
