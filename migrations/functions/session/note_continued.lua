-- Stores the continuations of the running answer, and the runner of its text from now on, for a
-- replica that takes the turn over.
--
-- Keys:       session, messages
-- Arguments:  owner, generation, fence   of the writer
--             continued                  all continuations so far, as JSON
--             runner                     of the last one, or empty
-- Reply:      ok, also where nothing is stored: the turn is not this writer's, or Redis has more
-- Called by:  Store::note_continued
register {
  name = 'note_continued',
  version = 1,
  flags = {},
  keys = { 'session', 'messages' },
  arguments = { 'owner', 'generation', 'fence', 'continued', 'runner' },
  run = function(keys, args)
    if of_writer(keys, args)
      and #(redis.call('HGET', keys.messages, 'continued') or '') <= #args.continued then
      redis.call('HSET', keys.messages, 'continued', args.continued, 'runner', args.runner)
    end
    return 'ok'
  end,
}
