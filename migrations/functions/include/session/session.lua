-- A session: its keys, its owner, its expiry.
--
-- Keys, all in the slot of the session's bucket:
--   session      hash, and the name of the session's channel. It has short fields only, so that
--                Redis keeps it in its compact form:
--                owner, model, created, updated, epoch
--                began (when Redis created it, in microseconds; 0 where it was restored)
--                deleted (1 while the log of a deleted session is kept)
--                events, tag, event_bytes (of the last event and of all kept), dropped_tag
--                last_message (number), bytes (of all messages, of what open turns store, and of the
--                idempotency keys)
--                pinned, archived (1 where the user has set this flag of the session)
--                titled (1 where the user or the model gave the title; else it is of the first question)
--                orphaned (how often a turn tried to begin beside a message that is not there)
--                idle_seconds (the session expires after this time without a turn; 0: never)
--                unanswered (until an answer has text or has ended well: until then, an anonymous session
--                expires after so many seconds at most; 1 stands for UNANSWERED_SECONDS)
--                importing (1 while messages of a session are imported, which is deleted until then)
--                own_messages (the number of messages that its first turn brought; a session with
--                this field is not listed)
--                unindexed (as many messages from the first one on are not in the index: what the first
--                turn brought, as a thousand entries would take Redis two milliseconds)
--                own_images (once: the images of that turn go with its end; else kept)
--                of the running turn: generation, fence, replica, writers, started (number and tag
--                of the event before it began), revision
--                last_cancel (<tag> <generation> running|waiting: the last cancelled generation)
--                closed (the last generation whose request to the model host was closed)
--                transferred (the tag of the event by which the session, anonymous until then,
--                became a user's; only in such a session, and in one that may have been such)
--   messages     hash: number → <number of the parent, or 0> <json header>\n<content>
--                title
--                metadata (json, or empty): as a front shows it again
--                hidden:<generation> (1): what a front showed of the request of this turn is deleted
--                of the running turn: turn (json), continued (json: the continuations of its
--                answer), runner (<host> <digest> of the model that wrote its text last; none where
--                unknown)
--                of each waiting turn: generation → <json header of the question>\n<content>, and
--                turn:<generation> → turn (json)
--   path         string: number and length of the messages that are shown and continued, oldest
--                first, in 8 bytes each. A parent is older than its children, so that the numbers
--                ascend.
--   branches     hash of a session that has branched: the parts of other branches, and the siblings.
--                `branches.lua` has its fields
--   chains       sorted set of such a session, by which the strand of a message is found. `branches.lua`
--                has its members
--   index        hash: id of a message → its number, but of the first `unindexed` ones. The id of an
--                answer is its generation's, and that of a question is its generation's with the last
--                bit flipped.
--   waiting      list: accepted turns that have not begun, in the order of acceptance, each
--                <generation> <fence> <replica> <number of its accepted event>
--                [ <anchor>[ <number of the message before that of the anchor>]]
--   events       list: the last events, each
--                <number> <tag> <running generation|-> <length of its answer> <kind>
--                <generation, = where it is the running one, or ->\n<json>
--   answer       string: the answer of the running turn so far
--   images       hash: the images of the messages, in parts, and of messages that are about to be
--                accepted. `images.lua` has its fields
--   open         hash of the bucket: '<session> <generation>' → '<replica> <fence>'
--   ended        prefix of the key <ended>:<generation>, which holds what ended that generation
--   idempotency  hash: idempotency key → <until when, in seconds> <generation> <digest of the request>
--   key_order    list: <until when> <idempotency key>, in the order of acceptance
--
-- The caller makes fences, tags, identifiers and times, so that a call that is repeated after a
-- lost reply changes nothing. A session of another owner looks like one that does not exist. The
-- field owner is the truth; whatever else names an owner (a turn that is held, a redo entry, an
-- index) may name the one from before a transfer.

local SESSION_KEYS = { 'session', 'messages', 'path', 'branches', 'chains', 'index', 'waiting', 'events',
  'answer', 'images', 'idempotency', 'key_order', 'open', 'ended' }
-- Those that expire with the session.
local EXPIRING_KEYS = { 'session', 'messages', 'path', 'branches', 'chains', 'index', 'waiting', 'events',
  'answer', 'images', 'idempotency', 'key_order' }

-- The shortest expiry of a session with an open turn; longer than a turn waits and runs.
local OPEN_SECONDS = 86400
-- The longest expiry of a session that began with a turn, without an answer and without an open turn:
-- requests that are refused or fail leave nothing for long.
local UNANSWERED_SECONDS = 600

-- The owner of a session that belongs to everybody who knows its identifier.
local ANONYMOUS = 'anonymous'

-- Returns these fields of the session.
local function session_fields(keys, ...)
  return redis.call('HMGET', keys.session, ...)
end

-- Returns these fields of the session, or nil where it is absent, deleted or another owner's.
local function owned(keys, owner, ...)
  local found = session_fields(keys, 'owner', 'deleted', ...)
  if not found[1] or found[1] ~= owner or found[2] then
    return nil
  end
  local fields = {}
  for i = 3, #found do
    fields[i - 2] = found[i]
  end
  return fields
end

-- Whether a write in the name of `owner` was made to this session: its owner's, or an anonymous
-- caller's from before the session became a user's.
local function was_written_by(stored, transferred, owner)
  return stored == owner or (transferred and owner == ANONYMOUS)
end

-- As `owned`, for what was acknowledged before: calls of the holder of a turn, which its fence
-- proves, and by a replica that applies them again after a failover.
local function owned_before(keys, owner, ...)
  local found = session_fields(keys, 'owner', 'deleted', 'transferred', ...)
  if not found[1] or found[2] or not was_written_by(found[1], found[3], owner) then
    return nil
  end
  local fields = {}
  for i = 4, #found do
    fields[i - 3] = found[i]
  end
  return fields
end

-- Changes after which time without a turn the session expires: the setting may be another one since
-- the session began, and the session may have become a user's.
local function change_expiry(keys, before, idle_seconds)
  if before == idle_seconds then
    return
  end
  redis.call('HSET', keys.session, 'idle_seconds', idle_seconds)
  if idle_seconds == '0' then
    for _, name in ipairs(EXPIRING_KEYS) do
      redis.call('PERSIST', keys[name])
    end
  end
end

-- Extends the expiry of the session, if it has one.
local function keep(keys)
  local fields = session_fields(keys, 'idle_seconds', 'generation', 'unanswered', 'owner')
  local seconds = tonumber(fields[1] or '0')
  if seconds == 0 then
    return
  end
  if fields[3] and fields[4] == ANONYMOUS then
    seconds = math.min(seconds, fields[3] == '1' and UNANSWERED_SECONDS or tonumber(fields[3]))
  end
  if fields[2] or redis.call('EXISTS', keys.waiting) == 1 then
    seconds = math.max(seconds, OPEN_SECONDS)
  end
  -- An expiry within a tenth is exact enough, and saves nine calls in most turns. A part that a
  -- clear removed may be without one. `chains` begins with `branches`.
  local left = redis.call('TTL', keys.messages)
  local has_all = redis.call('TTL', keys.path) ~= -1 and redis.call('TTL', keys.index) ~= -1
    and redis.call('TTL', keys.waiting) ~= -1 and redis.call('TTL', keys.images) ~= -1
    and redis.call('TTL', keys.branches) ~= -1 and redis.call('TTL', keys.key_order) ~= -1
  if has_all and left <= seconds and left > seconds * 0.9 then
    return
  end
  for _, name in ipairs(EXPIRING_KEYS) do
    redis.call('EXPIRE', keys[name], seconds)
  end
end

-- Returns the description of the session without its messages.
local function describe(keys, owner)
  local fields = owned(keys, owner, 'model', 'created', 'updated', 'generation', 'closed', 'epoch',
    'pinned', 'archived')
  if not fields then
    return { 'absent' }
  end
  -- Each entry of the path has 8 bytes: `branches.lua`.
  local count = redis.call('STRLEN', keys.path) / 8
  local title = redis.call('HGET', keys.messages, 'title')
  return { 'ok', title or '', fields[1], fields[2], fields[3], tostring(count), fields[4] or '-',
    fields[5] or '-', fields[6], (fields[7] and 'p' or '') .. (fields[8] and 'a' or '') }
end
