-- The transfer of an anonymous session to a user.

-- Makes an anonymous session this user's. It no longer expires, unless it is deleted, or its first
-- turn brought its own conversation.
local function transfer(keys, owner, tag)
  local fields = session_fields(keys, 'deleted', 'own_messages')
  redis.call('HSET', keys.session, 'owner', owner, 'transferred', tag)
  if not fields[1] and not fields[2] then
    redis.call('HSET', keys.session, 'idle_seconds', 0)
    for _, name in ipairs(EXPIRING_KEYS) do
      redis.call('PERSIST', keys[name])
    end
  end
  -- The owner is percent-encoded, and so needs no escape in JSON.
  push_event(keys, tag, 'transferred', '-', '{"transferred":{"owner":"' .. owner .. '"}}')
end

-- Applies a transfer again that a failover lost: a user's write was acknowledged in a session that
-- Redis has as an anonymous one.
local function transfer_again(keys, owner, tag)
  if owner ~= ANONYMOUS and redis.call('HGET', keys.session, 'owner') == ANONYMOUS then
    transfer(keys, owner, tag)
  end
end
