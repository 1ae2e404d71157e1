-- Returns how much of Redis a session takes, and for how long.
--
-- Keys:       session, answer, images
-- Arguments:  none
-- Reply:      absent
--             <owner> <bytes of its messages, images, events and running answer>
--             <seconds until it expires, -1: never>
--             <1 where the user or the model gave its title, else 0>
-- Called by:  Store::measure
register {
  name = 'measure',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'answer', 'images' },
  arguments = {},
  run = function(keys)
    local fields = session_fields(keys, 'owner', 'bytes', 'event_bytes', 'deleted', 'titled')
    if not fields[1] or fields[4] then
      return { 'absent' }
    end
    local bytes = tonumber(fields[2] or '0') + tonumber(fields[3] or '0')
      + redis.call('STRLEN', keys.answer) + image_bytes(keys)
    return { fields[1], tostring(bytes), tostring(redis.call('TTL', keys.session)),
      fields[5] and '1' or '0' }
  end,
}
