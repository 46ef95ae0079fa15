/**
 * A deployment as its clients see it: the tables in its /openapi.json, each with the requests and
 * the rows that the checks of contract.ts use.
 */
import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { parseArgs } from 'node:util';

/** An answer with its body read; `json` is undefined where the body is not JSON. */
// biome-ignore lint/suspicious/noExplicitAny: checks assert on whatever came
export type Reply = { status: number; headers: Headers; text: string; json: any };

/** Values by column name, as JSON has them. */
export type Row = Record<string, unknown>;

/** `token: null` sends no token, none the client's own; `code` is what a problem has to carry. */
export type Terms = {
  body?: unknown;
  headers?: Record<string, string>;
  token?: string | null;
  code?: string;
};

/** What a command line names: `URL [--token T]`, without --token the TOKEN of the environment. */
export function readCommand(args: string[], { TOKEN }: NodeJS.ProcessEnv) {
  const options = { token: { type: 'string' } } as const;
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options });
  const [url = ''] = positionals;
  if (positionals.length !== 1 || !URL.canParse(url))
    throw new Error('expected one URL of a deployment, e. g. http://127.0.0.1:8000 [--token T]');
  return { url: url.replace(/\/$/, ''), token: values.token ?? TOKEN?.trim() };
}

const TIMEOUT = 10_000; // ms for one answer; the service answers within 6 s
const REPEATS = 30; // of a request that a rate limit refused

/** Sends below `url`; a request that a rate limit refused is repeated after Retry-After. */
export function client(url: string, ownToken?: string, timeout = TIMEOUT) {
  return async (method: string, path: string, terms: Terms = {}): Promise<Reply> => {
    const { body, headers, token = ownToken } = terms;
    const init: RequestInit = { method, redirect: 'manual' };
    init.headers = {
      'accept-encoding': 'identity', // nginx weakens the ETag of a compressed answer
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...(token && { authorization: `Bearer ${token}` }),
      ...headers,
    };
    if (body !== undefined) init.body = typeof body === 'string' ? body : JSON.stringify(body);
    for (let repeats = REPEATS; ; repeats -= 1) {
      const answer = await fetch(url + path, { ...init, signal: AbortSignal.timeout(timeout) });
      const text = await answer.text();
      if (answer.status !== 429 || repeats === 0) return toReply(answer, text);
      const seconds = Math.min(Number(answer.headers.get('retry-after')) || 1, 5);
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  };
}

export function toReply(
  { status, headers }: Pick<Reply, 'status' | 'headers'>,
  text: string,
): Reply {
  const isJson = /json/.test(headers.get('content-type') ?? '');
  try {
    return { status, headers, text, json: isJson ? JSON.parse(text) : undefined };
  } catch {
    return { status, headers, text, json: undefined };
  }
}

/** As much of a JSON schema as is read here. */
type Schema = {
  name?: string;
  type?: string;
  format?: string;
  enum?: unknown[];
  maximum?: number;
  maxLength?: number;
  properties?: Record<string, Schema>;
  required?: string[];
  anyOf?: Schema[];
  $ref?: string;
};

/** The tables of the deployment at `url`. Throws where writes need a token and none is given. */
export async function openTables(url: string, token?: string): Promise<Table[]> {
  const send = client(url, token);
  const { status, json, text } = await send('GET', '/openapi.json');
  if (status !== 200 || !json?.paths)
    throw new Error(`GET /openapi.json: expected 200, got ${status} ${text.slice(0, 200)}`);
  const paths = Object.keys(json.paths);
  const lists = paths.flatMap((path) => /^\/rest\/v1(\/[^/]+)$/.exec(path)?.[1] ?? []);
  const tables = lists.map((list) => openTable(describeTable(json, list), send));
  if (tables.some(({ secured }) => secured.write) && !token)
    throw new Error('writes need a token: give it by --token or TOKEN');
  return tables;
}

/** `other` differs from `example` where it can; `text` is a column of any text, `number` of numbers. */
// biome-ignore lint/suspicious/noExplicitAny: the document of any deployment
function describeTable(document: any, list: string) {
  const resolve = ({ $ref, anyOf, ...schema }: Schema): Schema => {
    if ($ref) return resolve(document.components.schemas[$ref.split('/').at(-1) ?? '']);
    return anyOf ? resolve(anyOf.find(({ type }) => type !== 'null') ?? {}) : schema;
  };
  const { get, post } = document.paths[list];
  const content = 'application/json';
  const names = Object.keys(resolve(post.responses[201].content[content].schema).properties ?? {});
  const { schema, examples } = post.requestBody.content[content];
  const { properties = {}, required = [] } = resolve(schema);
  const [key = ''] = names;
  const settable = Object.keys(properties).filter((name) => name !== key);
  const example: Row = examples.one.value;
  const columns = settable.map((name) => ({ ...resolve(properties[name] ?? {}), name }));
  const change = ({ name, ...schema }: Schema) => [name, changed(example[name ?? ''], schema)];
  const other: Row = Object.fromEntries(columns.map(change));
  const isNumber = ({ type = '' }: Schema) => /^(number|integer)$/.test(type);
  const isText = ({ name, type, format, enum: words, maxLength = 30 }: (typeof columns)[0]) =>
    type === 'string' && !format && !words && maxLength >= 30 && !UUID.test(`${example[name]}`);
  return {
    base: document.servers[0].url.replace(/\/$/, ''),
    ...{ list, names, key, settable, required, columns, example, other },
    examples: Object.values<{ value: unknown }>(examples).map(({ value }) => value),
    text: columns.find(isText)?.name ?? '',
    number: columns.find(isNumber)?.name ?? '',
    hasJson: settable.some((name) => typeof example[name] === 'object'),
    secured: { read: get.security.length > 0, write: post.security.length > 0 },
  };
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const DAY = 86_400_000;

/** Another value of the column; the same one where none is known. */
function changed(value: unknown, { format, enum: words, maximum = Infinity }: Schema): unknown {
  if (words) return words.find((word) => word !== value) ?? value;
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'number') return value + 1 > maximum ? value - 1 : value + 1;
  if (Array.isArray(value)) return [...value, ...value];
  if (typeof value !== 'string') return value;
  if (UUID.test(value)) return randomUUID();
  if (!format) return `${value} II`;
  const moved = new Date(Date.parse(value) + DAY).toISOString();
  return format === 'date' ? moved.slice(0, 10) : moved;
}

export type Table = ReturnType<typeof openTable>;

/** A table with its requests; it remembers the keys of the rows that it made, for removeMade(). */
function openTable(table: ReturnType<typeof describeTable>, send: ReturnType<typeof client>) {
  const { list, key, settable, columns, text } = table;
  const moments = columns.flatMap(({ name, format }) => (format === 'date-time' ? [name] : []));
  const made = new Set<unknown>();

  /** Sends and asserts the status, of an error also that it is a problem with `code`. */
  async function ask(method: string, path: string, status: number, terms: Terms = {}) {
    const reply = await send(method, path, terms);
    const rows = method === 'GET' ? [] : [reply.json].flat();
    for (const row of rows) if (row?.[key]) made.add(row[key]);
    const location = reply.headers.get('location');
    if (location) made.add(location.split('/').at(-1));
    const shown = `${method} ${path.slice(0, 200)}: ${reply.text.slice(0, 200)}`;
    assert.equal(reply.status, status, `expected ${status}, got ${reply.status} from ${shown}`);
    if (status >= 400 && method !== 'HEAD') assertProblem(reply, terms.code);
    return reply;
  }

  /** The JSON of a GET that answers 200. */
  async function get(path: string, headers = {}) {
    return (await ask('GET', path, 200, { headers })).json;
  }

  /** A valid row that is not stored yet. */
  function fresh(values: Row = table.example): Row {
    const row: Row = { [key]: randomUUID(), ...values };
    if (text) row[text] = `check ${randomBytes(6).toString('hex')}`;
    made.add(row[key]);
    return row;
  }

  const at = (row: Row) => `${list}/${row[key]}`;
  const only = (...rows: Row[]) => `${list}?${key}=in.(${rows.map((row) => row[key])})`;
  const keysIn = (rows: Row[]) => rows.map((row) => String(row[key])).sort();

  async function create() {
    const row = fresh();
    const reply = await ask('POST', list, 201, { body: row });
    return { row, reply, path: at(row), etag: reply.headers.get('etag') ?? '' };
  }

  /** Three stored rows in the order of their keys, the second with other values, and their list. */
  async function three() {
    const rows = [fresh(), fresh(table.other), fresh()] as [Row, Row, Row];
    for (const [index, one] of keysIn(rows).entries())
      Object.assign(rows[index] ?? {}, { [key]: one });
    await ask('POST', list, 201, { body: rows });
    return { rows, mine: only(...rows) };
  }

  /** What a body may set, moments as numbers because they can be written in many ways. */
  function plain(row: Row): Row {
    const plainValue = (name: string) =>
      moments.includes(name) && row[name] ? Date.parse(String(row[name])) : row[name];
    return Object.fromEntries([key, ...settable].map((name) => [name, plainValue(name)]));
  }

  /** Rows as CSV, their key first. */
  function toCsv(rows: Row[]): string {
    const names = [key, ...settable];
    const lines = rows.map((row) => names.map((name) => `"${row[name]}"`));
    return `${[names, ...lines].join('\n')}\n`;
  }

  function assertRows(found: Row[], expected: Row[], what = 'rows'): void {
    assert.ok(Array.isArray(found), `expected an array, got ${JSON.stringify(found)}`);
    assert.deepEqual({ [what]: found.map(plain) }, { [what]: expected.map(plain) });
  }

  async function assertStored(...rows: Row[]): Promise<void> {
    for (const row of rows) assertRows([await get(at(row))], [row]);
  }

  /** Removes the rows that were made. Throws where one is left. */
  async function removeMade(): Promise<void> {
    const [keys, lists]: [unknown[], string[]] = [[...made], []];
    while (keys.length > 0) lists.push(`${list}?${key}=in.(${keys.splice(0, 100)})`);
    for (const mine of lists) await send('DELETE', mine);
    for (const mine of lists) assert.deepEqual(await get(mine), [], 'rows are left');
  }

  const requests = { send, ask, get, fresh, at, only, keysIn, create, three, toCsv };
  return { ...table, ...requests, moments, assertRows, assertStored, removeMade };
}

/** RFC 9457's members and PostgREST's in one body. */
export function assertProblem({ status, headers, json }: Reply, code?: string): void {
  assert.match(headers.get('content-type') ?? 'none', /^application\/problem\+json/);
  for (const member of ['type', 'title', 'detail', 'code', 'message'])
    assert.equal(typeof json?.[member], 'string', `member ${member} of the problem`);
  for (const member of ['details', 'hint'])
    assert.ok(member in json, `member ${member} of the problem`);
  assert.deepEqual([json.status, json.message], [status, json.detail]);
  if (code) assert.equal(json.code, code);
}

export function header({ headers }: Reply, name: string, expected: RegExp | string): string {
  const value = headers.get(name) ?? '';
  if (typeof expected === 'string') assert.equal(value, expected, `header ${name}`);
  else assert.match(value, expected, `header ${name}`);
  return value;
}

export function pointersIn({ json }: Reply): string[] {
  return json.errors.map(({ pointer }: { pointer: string }) => pointer);
}

export function toFilter(name: string, operator: string, value: unknown): string {
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value);
  return `${encodeURIComponent(name)}=${operator}.${encodeURIComponent(text)}`;
}
