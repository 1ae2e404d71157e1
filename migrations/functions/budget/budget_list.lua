-- Returns a page of a user's sessions.
--
-- Keys:       budget
-- Arguments:  payer
--             order            newest: from the one that was recorded last; oldest: from the other end
--             score, session   of the last entry of the page before; empty for the first page
--             limit            entries of the page, at most
-- Reply:      of each entry: the session, its score, and 1 where its bytes count for the payer, else 0
-- Called by:  Budget::list
register {
  name = 'budget_list',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'budget' },
  arguments = { 'payer', 'order', 'score', 'session', 'limit' },
  run = function(keys, args)
    local base = keys.budget
    local key, limit, page = base .. ':payer:' .. args.payer, tonumber(args.limit), {}
    local newest = args.order == 'newest'
    local function add(entries, is_after)
      for i = 1, #entries, 2 do
        local session = entries[i]
        if is_after(session) and #page < 3 * limit then
          local _, payer = recorded(base, session)
          page[#page + 1] = session
          page[#page + 1] = entries[i + 1]
          page[#page + 1] = payer == args.payer and '1' or '0'
        end
      end
    end
    local command, bound, last = 'ZRANGEBYSCORE', '-inf', '+inf'
    if newest then
      command, bound, last = 'ZREVRANGEBYSCORE', '+inf', '-inf'
    end
    if args.session ~= '' then
      -- Entries with the same score are in the order of their names.
      local same = redis.call(command, key, args.score, args.score, 'WITHSCORES')
      add(same, function(session)
        if newest then return session < args.session else return session > args.session end
      end)
      bound = '(' .. args.score
    end
    add(redis.call(command, key, bound, last, 'WITHSCORES', 'LIMIT', 0, limit), function()
      return true
    end)
    return page
  end,
}
