// autocannon's side of load.ts, for machines without wrk: `node cannon.js LOAD-AS-JSON` prints JSON.
// In JavaScript, because autocannon has no types.
import autocannon from 'autocannon';

const { url, request, rows, connections, seconds, rate } = JSON.parse(process.argv[2]);
const { method, path, body, token } = request;
let counter = 0;

/** fill() of load.ts with a key of chance. */
function filled(template, n) {
  const key = 1 + Math.floor(Math.random() * rows);
  return template
    ?.replaceAll('<key>', key.toString(16).padStart(12, '0'))
    .replace(/<counter:(\d+)>/g, (_, size) =>
      String(n % size).padStart(String(size - 1).length, '0'),
    );
}

const headers = {
  ...(body && { 'content-type': 'application/json' }),
  ...(token && { authorization: `Bearer ${token}` }),
};
const result = await autocannon({
  url,
  connections,
  duration: seconds,
  ...(rate && { overallRate: rate }),
  requests: [
    {
      method,
      headers,
      setupRequest(one) {
        counter += 1;
        return { ...one, path: filled(path, counter), body: filled(body, counter) };
      },
    },
  ],
});
const { requests, latency, errors, timeouts, non2xx, duration } = result;
const failed = errors + timeouts + non2xx;
process.stdout.write(
  JSON.stringify({
    requests: requests.total,
    seconds: duration,
    failed,
    how: `${errors} errors, ${timeouts} timeouts, ${non2xx} by status`,
    p50: latency.p50,
    p99: latency.p99,
  }),
);
