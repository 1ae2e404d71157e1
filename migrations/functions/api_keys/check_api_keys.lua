-- Checks API keys, and notes their use, at most once a minute each.
--
-- Keys:       keys
-- Arguments:  digests   of the keys
-- Reply:      the user of each key; empty where there is no such key
-- Called by:  ApiKeys::identify, ApiKeys::follow

-- The seconds within which a use is noted once.
local NOTED_SECONDS = 60

register {
  name = 'check_api_keys',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'keys' },
  arguments = {},
  rest = 'digests',
  run = function(keys, args)
    local now, users = redis.call('TIME')[1], {}
    for i, digest in ipairs(args.digests) do
      local id = identifier(digest)
      local record = redis.call('HGET', keys.keys, id)
      local stored, created, used, user
      if record then
        stored, created, used, user = fields_of(record)
      end
      if stored == digest then
        users[i] = user
        if tonumber(now) - tonumber(used) >= NOTED_SECONDS then
          redis.call('HSET', keys.keys, id, record_of(digest, created, now, user))
        end
      else
        users[i] = ''
      end
    end
    return users
  end,
}
