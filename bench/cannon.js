// autocannon's side of load.ts: `node cannon.js LOAD-AS-JSON` prints what wrk.lua prints.
// JavaScript, because autocannon has no types; a process of its own, as wrk is.
import autocannon from 'autocannon';
import { fill } from './load.ts';

const { url, request, rows, connections, seconds } = JSON.parse(process.argv[2]);
const { method, path, body } = request;
const headers = body ? { 'content-type': 'application/json' } : {};
let counter = 0;

function setupRequest(one) {
  const key = 1 + Math.floor(Math.random() * rows);
  counter += 1;
  return { ...one, path: fill(path, counter, key), body: body && fill(body, counter, key) };
}

const requests = [{ method, headers, setupRequest }];
const result = await autocannon({ url, connections, duration: seconds, requests });
const { latency, errors, timeouts, non2xx } = result;
process.stdout.write(
  JSON.stringify({
    requests: result.requests.total,
    seconds: result.duration,
    failed: errors + timeouts + non2xx,
    how: `${errors} errors, ${timeouts} timeouts, ${non2xx} by status`,
    p50: latency.p50,
    p99: latency.p99,
  }),
);
