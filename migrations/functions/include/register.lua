-- The beginning of every library: the registration of commands as Redis Functions, and how the functions
-- are made that build keys.

-- Returns the function that builds a key from what all keys of a library begin with.
local function single_key(kind)
  return function(base)
    return base .. kind
  end
end

-- Returns the function that builds the keys of a kind, from the beginning and a name.
local function key_of_each(kind)
  return function(base, name)
    return base .. kind .. name
  end
end

-- Returns the values of a call by their names. The values after the last name are a list under the
-- name `rest`.
local function by_name(names, values, rest)
  local named = {}
  for i, name in ipairs(names) do
    named[name] = values[i]
  end
  if rest then
    local list = {}
    for i = #names + 1, #values do
      list[#list + 1] = values[i]
    end
    named[rest] = list
  end
  return named
end

-- Whether this server is certain to be the primary. The last argument of every call is the key of
-- the primary lease, which holds the time until which that is certain, in microseconds on the
-- server's own clock; or it is - where no other server can become the primary. So a server that was
-- paused and replaced meanwhile carries out no call before it learns of its replacement.
local function holds_primary_lease(key)
  if key == '-' then
    return true
  end
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2] <= tonumber(redis.call('GET', key) or 0)
end

-- A command has these fields:
--   name, version   the function is jarvis_<name>_<version>
--   flags           the flags of Redis: 'no-writes', 'allow-oom'; {} for none
--   keys            the names of its keys, in order
--   arguments       the names of its arguments, in order
--   rest            the name of the list of all further arguments, where the command takes some
--   run             function(keys, args), both tables by name; it returns the reply
local function register(command)
  local key_names, names, rest = {}, command.arguments, command.rest
  -- While a library is loaded, there is no ipairs.
  for i = 1, #command.keys do
    key_names[i] = command.keys[i]
  end
  local function call(keys, values)
    if not holds_primary_lease(table.remove(values)) then
      return redis.error_reply('DOUBTFUL this server may no longer be the primary')
    end
    if #keys ~= #key_names or #values < #names
      or (#values > #names and not rest) then
      return redis.error_reply('ERR jarvis_' .. command.name .. '_' .. command.version
        .. ' got another number of keys or arguments than it declares')
    end
    return command.run(by_name(key_names, keys), by_name(names, values, rest))
  end
  redis.register_function { function_name = 'jarvis_' .. command.name .. '_' .. command.version,
    flags = command.flags, callback = call }
end
