-- Registers a command as a Redis Function. Stands at the beginning of every library.

-- The values of a call by their names. What follows the last name is a list under the name `rest`.
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

-- Every call carries the key of the primary lease as its last argument: the time until which this
-- server is sure to be the primary, in microseconds on its own clock, or - where no other server can
-- become the primary. A server that was stopped, and replaced meanwhile, must not carry out a call
-- before it learns of that, and does not know what it is asked.
local function holds_primary_lease(key)
  if key == '-' then
    return true
  end
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2] <= tonumber(redis.call('GET', key) or 0)
end

-- A command has these fields:
--   name, version   the function is jarvis_<name>_<version>
--   flags           of Redis: 'no-writes', 'allow-oom'; none: {}
--   keys            the names of its keys, in order
--   optional_key    the name of one more key, which a call may leave out
--   arguments       the names of its arguments, in order
--   rest            the name of the list of all further arguments, where there may be some
--   run             function(keys, args), both tables by name; its result is the reply
local function register(command)
  local key_names, names, rest = {}, command.arguments, command.rest
  -- While a library is loaded, there is no ipairs.
  for i = 1, #command.keys do
    key_names[i] = command.keys[i]
  end
  key_names[#key_names + 1] = command.optional_key
  local function call(keys, values)
    if not holds_primary_lease(table.remove(values)) then
      return redis.error_reply('DOUBTFUL this server may be no primary any more')
    end
    if #keys < #command.keys or #keys > #key_names or #values < #names
      or (#values > #names and not rest) then
      return redis.error_reply('ERR jarvis_' .. command.name .. '_' .. command.version
        .. ' got another number of keys or arguments than it declares')
    end
    return command.run(by_name(key_names, keys), by_name(names, values, rest))
  end
  redis.register_function { function_name = 'jarvis_' .. command.name .. '_' .. command.version,
    flags = command.flags, callback = call }
end
