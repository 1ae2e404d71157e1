-- Stored text: a header line that Redis reads, and the rest, which it never decodes.

-- The line that begins at `from`, and where the next one begins.
local function line(text, from)
  local at = string.find(text, '\n', from, true)
  return string.sub(text, from, at - 1), at + 1
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do
    list[#list + 1] = word
  end
  return list
end
