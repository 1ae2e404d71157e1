-- Puts one part of an image, for a message that is about to be accepted, or whose image a failover
-- lost. A repeat changes nothing.
--
-- Keys:       session, images
-- Arguments:  owner
--             epoch         of the session, where the image is put back after a failover; else empty
--             digest        of the image
--             bytes, parts  of the whole image
--             part, data    the number of this part, from 0, and its bytes
--             bytes_limit   the session's messages and images have at most so many bytes
--             seconds       until the images expire, where the session is not there yet
-- Reply:      put
--             whole    all parts of the image are there
--             absent   the session is another owner's; or with an epoch, it has another one, or no
--                      message with the image
--             full     the session would hold more than bytes_limit bytes
-- Called by:  Store::put_images
register {
  name = 'put_image',
  version = 1,
  flags = {},
  keys = { 'session', 'images' },
  arguments = { 'owner', 'epoch', 'digest', 'bytes', 'parts', 'part', 'data', 'bytes_limit', 'seconds' },
  run = function(keys, args)
    local fields = session_fields(keys, 'owner', 'deleted', 'epoch', 'bytes', 'transferred')
    if args.epoch == '' then
      if fields[1] and fields[1] ~= args.owner then
        return 'absent'
      end
    elseif fields[1] and (not was_written_by(fields[1], fields[5], args.owner) or fields[2]
      or fields[3] ~= args.epoch) then
      return 'absent'
    elseif fields[1] and not is_named(keys, args.digest) then
      -- Its message was cancelled meanwhile, or its session does not keep it.
      return 'absent'
    end
    if parts_of(keys, args.digest) then
      return 'whole'
    end
    local parts = tonumber(args.parts)
    if args.part == '0' and tonumber(fields[4] or '0') + image_bytes(keys) + tonumber(args.bytes)
      > tonumber(args.bytes_limit) then
      return 'full'
    end
    local is_new = redis.call('EXISTS', keys.images) == 0
    local field = args.digest .. ':' .. args.part
    if redis.call('HSETNX', keys.images, field, args.data) == 1 then
      redis.call('HINCRBY', keys.images, 'bytes', #args.data + FIELD_BYTES)
    end
    if is_new then
      -- That of a session that is there lives as long as the session.
      local left = redis.call('TTL', keys.session)
      if left == -2 or args.epoch == '' then
        left = tonumber(args.seconds)
      end
      if left > 0 then
        redis.call('EXPIRE', keys.images, left)
      end
    end
    for part = 0, parts - 1 do
      if redis.call('HEXISTS', keys.images, args.digest .. ':' .. part) == 0 then
        return 'put'
      end
    end
    redis.call('HSET', keys.images, args.digest, args.bytes .. ' ' .. args.parts)
    return 'whole'
  end,
}
