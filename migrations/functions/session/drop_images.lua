-- Drops images that were put for a message that was refused, unless another message has them.
--
-- Keys:       session, images
-- Arguments:  owner
--             parts     the largest number of parts of an image
--             digests   of the images
-- Reply:      ok
-- Called by:  Store::drop_images
register {
  name = 'drop_images',
  version = 1,
  flags = { 'allow-oom' },
  keys = { 'session', 'images' },
  arguments = { 'owner', 'parts' },
  rest = 'digests',
  run = function(keys, args)
    -- The owner does not matter, and may be another one by now: nothing that a message has is dropped.
    for _, digest in ipairs(args.digests) do
      if not is_named(keys, digest) then
        remove_image(keys, digest, tonumber(args.parts))
      end
    end
    return 'ok'
  end,
}
