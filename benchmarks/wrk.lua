-- Makes wrk say what it counted as one line of JSON. An argument upload=BYTES makes every request a POST of that size,
-- the argument vary gives each a query of its own.
-- There is no response() here on purpose: wrk would call it for each answer, and become what limits the rate.

function init(args)
   for _, argument in ipairs(args) do
      local size = argument:match("^upload=(%d+)$")
      if size then
         wrk.method = "POST"
         wrk.body = string.rep("x", tonumber(size))
      elseif argument == "vary" then
         local number = 0
         function request()
            number = number + 1
            return wrk.format(nil, wrk.path .. "?n=" .. number)
         end
      end
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   local text = 'COUNTED {"requests": %d, "bytes": %d, "microseconds": %d, "p50": %d, "p99": %d, "connect": %d, '
      .. '"read": %d, "write": %d, "timeout": %d, "status": %d}\n'
   io.write(text:format(
      summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect, errors.read, errors.write, errors.timeout, errors.status
   ))
end
