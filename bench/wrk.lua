-- wrk's side of load.ts: `wrk -s wrk.lua URL -- REQUEST ROWS`. In the raw REQUEST, <key> becomes a
-- random number from 1 to ROWS and <counter:N> becomes 0, 1, … N-1, 0, … of fixed width.
-- Prints one line of JSON.

local parts, fills = {}, {}

local function filler(kind, size, rows)
  if kind == 'key' then
    return function() return string.format('%012x', math.random(1, rows)) end
  end
  local counter, format = -1, '%0' .. #tostring(size - 1) .. 'd'
  return function()
    counter = (counter + 1) % size
    return string.format(format, counter)
  end
end

function init(args)
  math.randomseed(os.time() * 1000 + os.clock() * 1e6)
  local text, rows, at = args[1], tonumber(args[2]), 1
  for from, kind, size, to in text:gmatch('()<(%a+):?(%d*)>()') do
    table.insert(parts, text:sub(at, from - 1))
    table.insert(parts, '')
    fills[#parts] = filler(kind, tonumber(size), rows)
    at = to
  end
  table.insert(parts, text:sub(at))
end

function request()
  for at, fill in pairs(fills) do parts[at] = fill() end
  return table.concat(parts)
end

function done(summary, latency)
  local failed, kinds = 0, {}
  for kind, count in pairs(summary.errors) do
    failed = failed + count
    if count > 0 then table.insert(kinds, count .. ' by ' .. kind) end
  end
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"failed":%d,"how":"%s","p50":%f,"p99":%f}\n',
    summary.requests, summary.duration / 1e6, failed, table.concat(kinds, ', '),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
