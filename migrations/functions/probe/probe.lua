-- Checks whether this server would accept a turn. The function has no flags, so that Redis refuses
-- it where it refuses a new turn: on a read-only replica, and where memory is full. It writes and
-- publishes nothing. Its library is loaded last, so that it exists only where the others do.
--
-- Keys:       any   a key of the kind that turns need, also used as the name of a channel
-- Arguments:  none
-- Reply:      the commands of the functions that this user may not use on the key
-- Called by:  Conditions::follow

-- The commands of all functions, by the number of arguments after the key.
local NEEDED = {
  [0] = { 'DEL', 'EXISTS', 'GET', 'HGETALL', 'HKEYS', 'HLEN', 'HVALS', 'INCR', 'LLEN', 'LPOP', 'PERSIST',
    'SCARD', 'SMEMBERS', 'SSUBSCRIBE', 'STRLEN', 'TTL', 'UNLINK', 'ZCARD' },
  [1] = { 'EXPIRE', 'HDEL', 'HEXISTS', 'HGET', 'HMGET', 'HSCAN', 'HSTRLEN', 'INCRBY', 'LINDEX', 'RPUSH', 'SADD', 'SET',
    'SPUBLISH', 'SREM', 'ZREM', 'ZSCORE' },
  [2] = { 'GETRANGE', 'HINCRBY', 'HSET', 'HSETNX', 'LRANGE', 'LREM', 'SETRANGE', 'ZADD', 'ZCOUNT', 'ZINCRBY',
    'ZRANGE', 'ZRANGEBYSCORE', 'ZREMRANGEBYRANK', 'ZREVRANGEBYSCORE' },
  [3] = { 'LINSERT' },
}

register {
  name = 'probe',
  version = 1,
  flags = {},
  keys = { 'any' },
  arguments = {},
  run = function(keys)
    local denied = {}
    local function check(command, ...)
      if not redis.acl_check_cmd(command, ...) then
        denied[#denied + 1] = command
      end
    end
    check('TIME')
    check('FCALL_RO', 'jarvis_read_1', '1', keys.any)
    check('RENAME', keys.any, keys.any)
    local rest = {}
    for count = 0, 3 do
      for _, command in ipairs(NEEDED[count]) do
        check(command, keys.any, unpack(rest))
      end
      rest[#rest + 1] = '0'
    end
    return denied
  end,
}
