-- Whether a turn could be taken. Oldest supported binary: 0.1.0
--
-- This library is loaded after the others, so that its function is there only where theirs are. The
-- function has no flags: Redis refuses it where it refuses a new turn, on a read-only replica and
-- where memory is full. It writes nothing and publishes nothing.

-- The commands of all functions, by what follows the key.
local NEEDED = {
  [0] = { 'DEL', 'EXISTS', 'GET', 'HGETALL', 'HKEYS', 'HLEN', 'HVALS', 'INCR', 'LLEN', 'LPOP', 'PERSIST',
    'SMEMBERS', 'SSUBSCRIBE', 'STRLEN', 'ZCARD' },
  [1] = { 'EXPIRE', 'HDEL', 'HEXISTS', 'HGET', 'HMGET', 'HSCAN', 'LINDEX', 'RPUSH', 'SADD', 'SET',
    'SPUBLISH', 'SREM', 'ZREM', 'ZSCORE' },
  [2] = { 'GETRANGE', 'HINCRBY', 'HSET', 'LRANGE', 'LREM', 'LSET', 'SETRANGE', 'ZADD', 'ZCOUNT', 'ZRANGE',
    'ZREMRANGEBYRANK' },
  [3] = { 'LINSERT' },
}

-- KEYS: 1 a key of the kind that turns need, and the name of a channel of that kind
-- → the commands that this user may not use on it
local function probe(keys)
  local denied = {}
  local function check(command, ...)
    if not redis.acl_check_cmd(command, ...) then
      denied[#denied + 1] = command
    end
  end
  check('TIME')
  check('FCALL_RO', 'jarvis_read_1', '1', keys[1])
  local rest = {}
  for count = 0, 3 do
    for _, command in ipairs(NEEDED[count]) do
      check(command, keys[1], unpack(rest))
    end
    rest[#rest + 1] = '0'
  end
  return denied
end

register('probe', probe)
