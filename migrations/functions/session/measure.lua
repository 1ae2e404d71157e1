-- Returns how much of Redis a session takes, and for how long.
--
-- Keys:       session, messages
-- Arguments:  none
-- Reply:      absent
--             <bytes of its messages and events> <seconds until it expires, -1: never>
-- Called by:  Store::measure
register {
  name = 'measure',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'messages' },
  arguments = {},
  run = function(keys)
    local fields = session_fields(keys, 'owner', 'bytes', 'event_bytes', 'deleted')
    if not fields[1] or fields[4] then
      return { 'absent' }
    end
    local bytes = tonumber(fields[2] or '0') + tonumber(fields[3] or '0')
    return { tostring(bytes), tostring(redis.call('TTL', keys.session)) }
  end,
}
