-- The images of a session's messages. A message names each of its images by the digest of the bytes;
-- the bytes are in the hash `images`, once a session, however many messages have the image.
--
-- Fields of that hash:
--   <digest>         <bytes> <number of parts>; it is written with the last part
--   <digest>#        the number of messages that have the image; none where it is about to be one's
--   <digest>:<part>  up to 256 KiB of the image; the parts are counted from 0
--   bytes            what all of them take
--
-- The parts are put before the message is accepted, because a call with all of them would take too
-- long. So an image without a message is one of a message that is about to be accepted; where that
-- is refused, the image is dropped.

-- Bytes at the beginning of a header within which its images stand.
local HEADER_START = 1024
-- Parts of one image, at most.
local MOST_PARTS = 16
-- Bytes that Redis takes for a field in addition to its value, about.
local FIELD_BYTES = 128

-- Returns the digests in the header of a message, which may be given with its content. A text in JSON
-- has no quote without a backslash before it, so that the name is that of the field.
local function digests_of(message)
  local digests = {}
  -- They stand before all that may be long: a header may have a megabyte of calls.
  local start = string.sub(message, 1, HEADER_START)
  if not string.find(start, '"p":[', 1, true) then
    return digests
  end
  start = string.match(start, '^[^\n]*')
  for digest in string.gmatch(string.match(start, '"p":%[(.-)%]') or '', '"(%x+) ') do
    digests[#digests + 1] = digest
  end
  return digests
end

-- Returns the number of parts of a whole image; nil where there is none.
local function parts_of(keys, digest)
  local entry = redis.call('HGET', keys.images, digest)
  return entry and tonumber(words(entry)[2])
end

-- Whether a message of the session has an image.
local function is_named(keys, digest)
  return redis.call('HEXISTS', keys.images, digest .. '#') == 1
end

-- Returns what the images of the session take.
local function image_bytes(keys)
  return tonumber(redis.call('HGET', keys.images, 'bytes') or '0')
end

-- Removes parts of an image, and its entry.
local function remove_image(keys, digest, parts)
  for part = 0, parts - 1 do
    local field = digest .. ':' .. part
    local length = redis.call('HSTRLEN', keys.images, field)
    if redis.call('HDEL', keys.images, field) == 1 then
      redis.call('HINCRBY', keys.images, 'bytes', -length - FIELD_BYTES)
    end
  end
  redis.call('HDEL', keys.images, digest)
  if redis.call('HLEN', keys.images) == 1 and redis.call('HEXISTS', keys.images, 'bytes') == 1 then
    redis.call('UNLINK', keys.images)
  end
end

-- Counts the messages that have an image: `by` more, for each image that this one names, also where
-- its bytes are lost: they are put back later. One that no message has any more is removed.
local function count_images(keys, message, by)
  for _, digest in ipairs(digests_of(message)) do
    if redis.call('HINCRBY', keys.images, digest .. '#', by) <= 0 then
      redis.call('HDEL', keys.images, digest .. '#')
      remove_image(keys, digest, parts_of(keys, digest) or MOST_PARTS)
    end
  end
end

-- Whether an image that a message names is not there.
local function lacks_images(keys, message)
  for _, digest in ipairs(digests_of(message)) do
    if not parts_of(keys, digest) then
      return true
    end
  end
  return false
end
