-- wrk's side of load.ts: `wrk -s wrk.lua URL -- FILE ROWS DELAY`. FILE holds one raw request, in
-- which <key> stands for a random row of ROWS and <counter:N> for 0, 1, … N-1, 0, … of fixed width.
-- DELAY: mean of ms that a connection waits before each request, 0 for none. Prints one JSON line.

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

local function split(text, rows)
  local at = 1
  for from, kind, size, to in text:gmatch('()<(%a+):?(%d*)>()') do
    table.insert(parts, text:sub(at, from - 1))
    table.insert(parts, '')
    fills[#parts] = filler(kind, tonumber(size), rows)
    at = to
  end
  table.insert(parts, text:sub(at))
end

function init(args)
  local file = assert(io.open(args[1]))
  math.randomseed(os.time() * 1000 + os.clock() * 1e6)
  split(file:read('*a'), tonumber(args[2]))
  file:close()
  local mean = tonumber(args[3])
  if mean == 0 then return end
  -- Whole ms are all that wrk can wait: rounded at random, so that the mean is kept.
  delay = function()
    return math.floor(-mean * math.log(1 - math.random()) + math.random())
  end
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
