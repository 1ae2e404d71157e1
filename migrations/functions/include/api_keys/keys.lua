-- API keys: their record.
--
-- Keys:
--   keys   hash: identifier of an API key → <digest> <created> <used> <user>
--          The identifier is the first 16 characters of the digest, which is the SHA-256 of the key
--          in hexadecimal. The times are seconds since 1970; used is 0 where the key never was.

-- Returns the identifier of a key.
local function identifier(digest)
  return string.sub(digest, 1, 16)
end

-- Returns digest, created, used and user of a record.
local function fields_of(record)
  return string.match(record, '^(%S+) (%d+) (%d+) (.*)$')
end

-- Returns the record of these fields.
local function record_of(digest, created, used, user)
  return digest .. ' ' .. created .. ' ' .. used .. ' ' .. user
end
