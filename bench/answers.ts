/** Peers are compared only when they answer as the service does: this asks all of them first. */
import { deepEqual, equal } from 'node:assert/strict';
import type { Contestant } from './contestants.ts';
import { KEY_PREFIX } from './database.ts';
import { fill, type Request } from './load.ts';
import type { Work } from './works.ts';

type Answer = { status: number; body: unknown };

/** Asks for the request's first three variants, each after `before`. */
async function answersOf(url: string, request: Request, before: () => Promise<void>) {
  const answers: Answer[] = [];
  for (const n of [1, 2, 3]) {
    await before();
    const { method, path, body } = request;
    const response = await fetch(url + fill(path, n), {
      method,
      ...(body && { body: fill(body, n), headers: { 'content-type': 'application/json' } }),
    });
    answers.push({ status: response.status, body: comparable(await response.json()) });
  }
  return answers;
}

/** Without the keys that a contestant made by chance; the Flask service wraps what it created. */
function comparable(body: unknown): unknown {
  const one = Array.isArray(body) && body.length === 1 ? body[0] : body;
  const { uuid = '', ...rest } = Object(one) as Record<string, unknown>;
  return String(uuid).startsWith(KEY_PREFIX) || Array.isArray(one) ? one : rest;
}

/** Throws an AssertionError that shows the difference. */
export async function expectEqualAnswers(
  { request, plain = request }: Work,
  ours: Contestant,
  peers: Contestant[],
  before = async () => {},
): Promise<void> {
  const expected = await answersOf(ours.url, request, before);
  for (const { name, url } of peers) {
    const found = await answersOf(url, plain, before);
    const flask = name === 'Flask';
    deepEqual(
      flask ? found.map(({ body }) => body) : found,
      flask ? expected.map(({ body }) => body) : expected,
      `${name} answers ${request.method} ${request.path} otherwise`,
    );
  }
  equal(
    expected.every(({ status }) => status < 300),
    true,
    `${request.path} fails`,
  );
}
