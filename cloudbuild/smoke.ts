/**
 * Whether a deployment answers: reads, writes one row, reads it back and removes it, in 10 s.
 *
 *     npm run smoke -- URL [--token T]      or TOKEN in the environment, when writes need one
 */
import { exampleRow, open, type Reply, readCommand, resource } from './deployment.ts';

const LIMIT = 10_000;
const LAST = 3_000; // of it, for the removal

try {
  await smoke();
} catch (error) {
  console.error(`smoke: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}

async function smoke(): Promise<void> {
  const { url, token } = readCommand(process.argv.slice(2), process.env);
  const started = performance.now();
  const left = () => Math.max(1, Math.ceil(started + LIMIT - LAST - performance.now()));
  const send: ReturnType<typeof open> = (...request) => open(url, token, left())(...request);
  await reads(send, left);
  const row = exampleRow('smoke test');
  const path = `/${resource.path}/${row[resource.key]}`;
  try {
    expect(await send('POST', `/${resource.path}`, { body: row }), 201, 'create a row');
    const found = expect(await send('GET', path), 200, 'read it back');
    if (JSON.stringify(found.json) !== JSON.stringify(row))
      throw new Error(`read it back: expected ${JSON.stringify(row)}, got ${found.text}`);
  } finally {
    const removed = await open(url, token, LAST)('DELETE', path);
    if (removed.status !== 404) expect(removed, 204, 'remove it');
  }
  console.log(`smoke: ${url} reads and writes, ${Math.round(performance.now() - started)} ms`);
}

/** An ingress may need a moment to learn of new pods, so the first read is repeated. */
async function reads(send: ReturnType<typeof open>, left: () => number): Promise<void> {
  for (;;) {
    const reply = await send('GET', `/${resource.path}?limit=1`).catch(String);
    if (typeof reply !== 'string' && (reply.status === 200 || reply.status === 206)) {
      if (Array.isArray(reply.json)) return;
    }
    if (left() <= 1) {
      if (typeof reply === 'string') throw new Error(`read a list: ${reply}`);
      expect(reply, 200, 'read a list, a JSON array');
      throw new Error(`read a list: expected a JSON array, got ${reply.text.slice(0, 200)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

function expect(reply: Reply, status: number, what: string): Reply {
  if (reply.status === status) return reply;
  const hint = reply.status === 401 ? '; give a token by --token or TOKEN' : '';
  const answered = `${reply.status} ${reply.text.slice(0, 200)}`;
  throw new Error(`${what}: expected ${status}, got ${answered}${hint}`);
}
