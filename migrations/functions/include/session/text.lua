-- Stored text: a header line that the functions read, and the rest, which they never decode.

-- Returns the line that begins at `from`, and the position at which the next line begins.
local function line(text, from)
  local at = string.find(text, '\n', from, true)
  return string.sub(text, from, at - 1), at + 1
end

-- Returns the words of a text as a list.
local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do
    list[#list + 1] = word
  end
  return list
end
