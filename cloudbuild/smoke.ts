/**
 * Whether a deployment is up, within 10 s and without writing a row: it is ready, lists each of its
 * tables, and its database looks for a row to delete that does not exist.
 *
 *     npm run smoke -- URL [--token T]      or TOKEN in the environment, where a token is needed
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { client, openTables, readCommand } from '../test/deployment.ts';

const LIMIT = 10_000; // ms
let last = 'no answer';

async function smoke(): Promise<void> {
  const { url, token } = readCommand(process.argv.slice(2), process.env);
  const send = client(url, token);
  /** Repeats the request until its answer fits: an ingress needs a moment to find new pods. */
  const expect = async (answer: RegExp, method: string, path: string) => {
    for (; ; await sleep(250)) {
      const reply = await send(method, path).catch((error) => ({ status: 0, text: `${error}` }));
      const given = `${reply.status} ${reply.text.slice(0, 200)}`;
      if (answer.test(given)) return;
      last = `${method} ${path}: expected ${answer}, got ${given}`;
    }
  };
  await expect(/^200/, 'GET', '/readyz');
  for (const { list, key } of await openTables(url, token)) {
    await expect(/^200 \[/, 'GET', `${list}?limit=1&select=${key}`);
    await expect(/^404 .*PGRST116/, 'DELETE', `${list}/${randomUUID()}`);
  }
  console.log(`smoke: ${url} is ready, reads and takes writes`);
}

const late = sleep(LIMIT).then(() => Promise.reject(new Error(last)));
await Promise.race([smoke(), late]).catch(({ message }: Error) => {
  console.error(`smoke: ${message}`);
  process.exitCode = 1;
});
process.exit();
