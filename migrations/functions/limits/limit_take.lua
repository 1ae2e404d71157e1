-- Takes the cost of a request from all limits of one caller, and holds a socket, or does neither
-- where too little is left. With costs of 0 and no socket it only reads.
--
-- Keys:       caller
-- Arguments:  forced           1 to take also what is not left: it was used already
--             once             a name under which this is taken only once, or empty
--             known            a name under which a repeat is known, or empty: where too little is
--                              left, and this was taken under the name, nothing is taken. Where this
--                              gives back, it is what such a repeat took
--             socket           to hold, or empty
--             sockets_limit    sockets that the caller may hold; 0 where they are not to be counted
--             socket_seconds   until the hold ends
--             limits           of each limit its name, the quota, the microseconds in which one comes
--                              back, the cost, and where that gives back, when all of the limit was
--                              to be back right after it was taken, else 0
-- Reply:      verdict    taken, refused (too little is left, or too many repeats were given back), known,
--                        or full: the caller holds as many sockets as it may
--             count      of held sockets
--             backlogs   of each limit the microseconds until all of it is back
--             sockets    all that are held, where the verdict is full, and where they are only counted
--             now        of Redis, in microseconds
-- Called by:  LimitStore::take

-- The seconds for which a name is remembered.
local ONCE_SECONDS = 600

register {
  name = 'limit_take',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'caller' },
  arguments = { 'forced', 'once', 'known', 'socket', 'sockets_limit', 'socket_seconds' },
  rest = 'limits',
  run = function(keys, args)
    local base, now = keys.caller, now_us()
    local limits = parse_limits(base, args.limits)
    read_backlogs(limits, now)
    local verdict, held = 'taken', {}
    if args.forced ~= '1' then
      for _, limit in ipairs(limits) do
        if not has_enough(limit) then
          verdict = 'refused'
        end
      end
    end
    local known = args.known ~= '' and known_key(base, args.known)
    if known and limits[1].cost < 0 then
      verdict = use_repeat(base, known) and 'taken' or 'refused'
    elseif verdict == 'refused' and known and use_repeat(base, known) then
      verdict = 'known'
    end
    local sockets, sockets_limit, count = sockets_key(base), tonumber(args.sockets_limit), 0
    if sockets_limit > 0 then
      count = count_sockets(sockets, now)
      if verdict == 'taken' and args.socket ~= '' and count >= sockets_limit
        and not redis.call('ZSCORE', sockets, args.socket) then
        verdict = 'full'
      end
      if verdict == 'full' or args.socket == '' then
        held = redis.call('ZRANGE', sockets, 0, -1)
      end
    end
    local once = args.once ~= '' and once_key(base, args.once)
    local is_first = not once or redis.call('EXISTS', once) == 0
    if verdict == 'taken' and is_first then
      take_all(limits, now)
      if once then
        redis.call('SET', once, '', 'EX', ONCE_SECONDS)
      end
      if known then
        redis.call('SET', known, '0', 'NX', 'EX', ONCE_SECONDS)
      end
      if args.socket ~= '' then
        count = count + hold_sockets(sockets, { args.socket }, now, tonumber(args.socket_seconds))
      end
    end
    local backlogs = {}
    for i, limit in ipairs(limits) do
      backlogs[i] = limit.backlog
    end
    return { verdict, count, backlogs, held, now }
  end,
}
