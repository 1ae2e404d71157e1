-- Reads one part of an image.
--
-- Keys:       session, images
-- Arguments:  owner
--             generation  and
--             fence       of the running turn whose holder reads, which may name the anonymous caller
--                         from before a transfer; else both are -
--             digest      of the image
--             part        its number, from 0
-- Reply:      ok <number of parts> <the part>
--             none     there is no such image, or no such part
--             absent   the owner has no such session
-- Called by:  Store::image
register {
  name = 'image',
  version = 1,
  flags = { 'no-writes' },
  keys = { 'session', 'images' },
  arguments = { 'owner', 'generation', 'fence', 'digest', 'part' },
  run = function(keys, args)
    if not owned(keys, args.owner) and not of_writer(keys, args) then
      return { 'absent' }
    end
    local parts = parts_of(keys, args.digest)
    local data = parts and redis.call('HGET', keys.images, args.digest .. ':' .. args.part)
    if not data then
      return { 'none' }
    end
    return { 'ok', tostring(parts), data }
  end,
}
