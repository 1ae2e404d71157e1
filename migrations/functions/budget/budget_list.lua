-- Returns a page of a user's sessions.
--
-- Keys:       budget
-- Arguments:  payer
--             order            newest: from the one that was recorded last; oldest: from the other end
--             score, session   of the last entry of the page before; empty for the first page
--             limit            entries of the page, at most
-- Reply:      of each entry: the session, its score, and 1 where its bytes are recorded for the payer,
--             else 0
-- Called by:  Budget::list

-- Entries that have the same score, at most.
local SAME_SCORE = 100

register {
  name = 'budget_list',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'budget' },
  arguments = { 'payer', 'order', 'score', 'session', 'limit' },
  run = function(keys, args)
    local base = keys.budget
    local key, limit, page = payer_key(base, args.payer), tonumber(args.limit), {}
    local newest = args.order == 'newest'
    local function add(entries, is_after)
      for i = 1, #entries, 2 do
        local session = entries[i]
        if is_after(session) and #page < 3 * limit then
          local bytes, payer = recorded(base, session)
          page[#page + 1] = session
          page[#page + 1] = entries[i + 1]
          page[#page + 1] = payer == args.payer and bytes > 0 and '1' or '0'
        end
      end
    end
    -- Returns entries between two scores.
    local function entries(from, to, count)
      if newest then
        return redis.call('ZREVRANGEBYSCORE', key, from, to, 'WITHSCORES', 'LIMIT', 0, count)
      end
      return redis.call('ZRANGEBYSCORE', key, from, to, 'WITHSCORES', 'LIMIT', 0, count)
    end
    local from, to = '-inf', '+inf'
    if newest then
      from, to = to, from
    end
    if args.session ~= '' then
      -- Entries with the same score, a microsecond, are in the order of their names.
      add(entries(args.score, args.score, limit + SAME_SCORE), function(session)
        if newest then return session < args.session else return session > args.session end
      end)
      from = '(' .. args.score
    end
    add(entries(from, to, limit), function() return true end)
    return page
  end,
}
