/** A deployment as its clients see it: smoke.ts and acceptance.ts know no more of it than its URL. */
import { parseArgs } from 'node:util';
import { passengers as resource } from '../app.ts';

export { resource };

/** An answer with its body read; `json` is undefined where the body is none. */
export type Reply = {
  status: number;
  headers: Headers;
  text: string;
  // biome-ignore lint/suspicious/noExplicitAny: checks assert on whatever came
  json: any;
};

/** Values by column name, as JSON has them. */
export type Row = Record<string, unknown>;

/** `token: null` sends none; without a word of it the one of the command line is sent. */
export type Terms = { headers?: Record<string, string>; body?: unknown; token?: string | null };
export type Send = (method: string, path: string, terms?: Terms) => Promise<Reply>;

const PATIENCE = 10_000; // ms for one answer; the service promises 6 s
const REPEATS = 30; // of a request that a rate limit refused

/** What the command line names: `URL [--token T]`, else TOKEN of the environment. */
export function readCommand(args: string[], environment: NodeJS.ProcessEnv) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { token: { type: 'string' } },
  });
  const [given = ''] = positionals;
  if (positionals.length !== 1 || !URL.canParse(given))
    throw new Error('expected one URL of a deployment, e. g. http://127.0.0.1:8000 [--token T]');
  const token = values.token ?? environment.TOKEN?.trim();
  return { url: given.replace(/\/$/, ''), token: token || undefined };
}

/** Sends to the deployment at `url`; what a rate limit refuses is sent again when it says. */
export function open(url: string, token: string | undefined, patience = PATIENCE): Send {
  return async (method, path, terms = {}) => {
    const { headers = {}, body, token: own = token } = terms;
    const init: RequestInit = { method, redirect: 'manual' };
    const typed = body !== undefined && { 'content-type': 'application/json' };
    const plain = { 'accept-encoding': 'identity' }; // nginx weakens the ETag of what it packs
    init.headers = {
      ...plain,
      ...typed,
      ...(own && { authorization: `Bearer ${own}` }),
      ...headers,
    };
    if (body !== undefined) init.body = typeof body === 'string' ? body : JSON.stringify(body);
    for (let left = REPEATS; ; left -= 1) {
      const answer = await fetch(url + path, { ...init, signal: AbortSignal.timeout(patience) });
      const reply = await read(answer);
      if (reply.status !== 429 || left === 0) return reply;
      const seconds = Number(reply.headers.get('retry-after')) || 1;
      await new Promise((resolve) => setTimeout(resolve, Math.min(seconds, 5) * 1000));
    }
  };
}

async function read(answer: Response): Promise<Reply> {
  const { status, headers } = answer;
  const text = await answer.text();
  const isJson = /json/.test(headers.get('content-type') ?? '');
  return { status, headers, text, json: isJson ? parse(text) : undefined };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The first column that takes `value`. Throws where the declaration has none. */
export function columnFor(value: unknown): string {
  const found = Object.entries(resource.columns).find(([, { schema }]) => {
    return schema.safeParse(value).success;
  });
  if (!found) throw new Error(`expected a column that takes ${JSON.stringify(value)}`);
  return found[0];
}

/** A column of free text: it carries the mark by which a row is known to be of these checks. */
export const text = columnFor('any word');

/** A valid row of the declared resource, with a key and a mark of its own. */
export function exampleRow(mark: string): Row {
  return { ...resource.example, [resource.key]: crypto.randomUUID(), [text]: mark };
}
