/**
 * The contract's main cases over every declaration, one line each in DECLARATIONS; then what is
 * special to one of them. The real process serves it by RESOURCE, on a real PostgreSQL.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { passengers, type Resource, type Row } from '../app.ts';
import {
  bearer,
  inherited,
  nodeArguments,
  type Reply,
  startDatabase,
  startService,
  type TestDatabase,
  type TestService,
  until,
} from '../test/harness.ts';

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const SHOP = { JWT_SECRET: SECRET, JWT_AUDIENCE: 'shop-example' };
const BUILD = { APP_VERSION: '1.2.3', APP_BRANCH: 'main', APP_COMMIT: 'abc1234' };
const README = new URL('../README.md', import.meta.url);
const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** What is served, and the environment that it wants besides; one line for each declaration. */
const DECLARATIONS: [file: string, environment: Record<string, string>][] = [
  ['app.ts', {}],
  ['examples/orders.ts', SHOP],
  ['examples/cities.ts', { BASE_PATH: '/ws/cities' }],
  ['README.md', {}],
];

let database: TestDatabase;
let directory: string;
before(async () => {
  database = await startDatabase();
  directory = await mkdtemp(join(tmpdir(), 'examples test-'));
  await write('package.json', '{ "type": "module" }'); // else tsx makes app.ts anew, as CommonJS
  const { pathname } = new URL(database.url);
  await database.sql.unsafe(`alter database ${pathname.slice(1)} set timezone to 'UTC'`);
});
after(async () => {
  await database?.stop();
  await rm(directory, { recursive: true });
});

/** The file of a declaration; of the README's that one which stands in its text. */
async function fileOf(file: string): Promise<string> {
  if (file !== 'README.md') return join(ROOT, file);
  const shown =
    /^ {4}import .*'\.\.\/app\.ts';$[\s\S]*?^ {4}\}\);$/m.exec(
      await readFile(README, 'utf8'),
    )?.[0] ?? '';
  const app = JSON.stringify(new URL('../app.ts', import.meta.url).href);
  return write('shown.ts', shown.replace("'../app.ts'", app));
}

async function write(name: string, text: string): Promise<string> {
  await writeFile(join(directory, name), text);
  return join(directory, name);
}

type Send = (method: string, path: string, body?: unknown, headers?: object) => Promise<Reply>;
type Served = { resource: Resource; service: TestService; base: string; at: string; send: Send };

/** A running service of one declaration; `send` goes below its path, as the owner of its example. */
async function serve(file: string, environment: Record<string, string>): Promise<Served> {
  const path = await fileOf(file);
  const resource: Resource = file === 'app.ts' ? passengers : (await import(path)).default;
  const RESOURCE = file === 'app.ts' ? '' : path;
  const common = { DATABASE_URL: database.url, POOL_SIZE: '2', RESOURCE, ...BUILD };
  const service = await startService({ ...common, ...environment });
  const base = environment.BASE_PATH ?? '';
  await until(async () => (await service.get(`${base}/readyz`)).status === 200);
  const at = `${base}/${resource.path}`;
  const own = resource.owner ? await asOwner(resource) : {};
  const send: Send = (method, path, body, headers) =>
    service.request(method, at + path, body, { ...own, ...headers });
  return { resource, service, base, at, send };
}

/** The token of who owns the example. */
function asOwner({ owner = '', example }: Resource) {
  return bearer(SECRET, String(example[owner]), { aud: SHOP.JWT_AUDIENCE });
}

function part(row: Row, names: string[]): Row {
  return Object.fromEntries(names.map((name) => [name, row[name]]));
}

/** A body with every value that may be set, all of them the example's. */
function exampleOf({ settable, example }: Resource): Row {
  return part(example, settable);
}

/** Another body, which differs in every value. */
function otherOf({ settable, example, columns, part }: Resource): Row {
  const other = (name: string) => {
    const value = example[name];
    const words = String(columns[name]?.expects).split(' or ');
    const texts = [
      ...words,
      `${value} II`,
      '2001-02-03',
      '2001-02-03T04:05:06+00:00',
      randomUUID(),
    ];
    const tries = [!value, Number(value) + 1, Number(value) - 1, [value, value].flat(), ...texts];
    const fits = (one: unknown) => one !== value && part.safeParse({ [name]: one }).success;
    return tries.find(fits) ?? assert.fail(`no other value for ${name}`);
  };
  return Object.fromEntries(settable.map((name) => [name, other(name)]));
}

function asFilter(value: unknown): string {
  return encodeURIComponent(typeof value === 'object' ? JSON.stringify(value) : String(value));
}

async function lint(name: string, document: object): Promise<object> {
  const file = await write(`${name}.json`, JSON.stringify(document));
  const cli = fileURLToPath(import.meta.resolve('@redocly/cli/bin/cli.js'));
  const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  const args = [cli, 'lint', file, '--extends=recommended', '--format=json'];
  const run = promisify(execFile)(process.execPath, args, { env, cwd: directory });
  const { totals, problems } = JSON.parse((await run.catch((error) => error)).stdout);
  return { ...totals, problems: problems.map((one: object) => JSON.stringify(one)) };
}

for (const [file, environment] of DECLARATIONS) {
  describe(`The declaration of ${file}`, () => {
    let [resource, service, base, at, send] = [] as unknown as [
      ...[Resource, TestService, string, string, Send],
    ];
    let [row, other]: [Row, Row] = [{}, {}];
    before(async () => {
      ({ resource, service, base, at, send } = await serve(file, environment));
      [row, other] = [exampleOf(resource), otherOf(resource)];
    });
    after(() => service?.stop());

    const make = async (body: unknown = row, headers = {}): Promise<Row> => {
      const reply = await send('POST', '', body, headers);
      assert.equal(reply.status, 201, reply.text);
      return reply.json;
    };
    /** The key of a row, and the list of two rows alone. */
    const keyOf = (one: Row = {}) => String(one[resource.key]);
    const only = (...rows: Row[]) => `?${resource.key}=in.(${rows.map(keyOf)})`;
    const keysIn = (reply: Reply) => {
      assert.ok(Array.isArray(reply.json), reply.text);
      return reply.json.map(keyOf).sort();
    };
    const keys = (...rows: Row[]) => rows.map(keyOf).sort();
    const told = (reply: Reply, status: number, code: string) => {
      assert.deepEqual([reply.status, reply.json?.code], [status, code], reply.text);
      assert.match(String(reply.headers.get('content-type')), /^application\/problem\+json/);
    };

    test('POST creates what is sent; GET reads it, and 304 by its ETag', async () => {
      const made = await send('POST', '', row);
      assert.equal(made.status, 201, made.text);
      const key = keyOf(made.json);
      const owned = resource.owner ? part(resource.example, [resource.owner]) : {};
      assert.deepEqual(made.json, { [resource.key]: key, ...owned, ...row });
      assert.deepEqual(Object.keys(made.json), resource.names);
      assert.equal(made.headers.get('location'), `${at}/${key}`);
      const read = await send('GET', `/${key}`);
      assert.deepEqual([read.status, read.json], [200, made.json]);
      const tag = String(read.headers.get('etag'));
      assert.equal(made.headers.get('etag'), tag);
      const again = await send('GET', `/${key}`, undefined, { 'if-none-match': tag });
      assert.deepEqual([again.status, again.text], [304, '']);
    });

    test('POST fills what has a default, and names all that lacks', async () => {
      await make(part(row, resource.required));
      const reply = await send('POST', '', {});
      const pointers = reply.json.errors?.map(({ pointer }: { pointer: string }) => pointer);
      assert.deepEqual([reply.status, pointers], [422, resource.required.map((one) => `/${one}`)]);
    });

    test('POST of an array is all or none', async () => {
      const many = await send('POST', '', [row, other]);
      assert.deepEqual([many.status, many.json.length], [201, 2]);
      const key = randomUUID();
      const failed = await send('POST', '', [{ ...row, [resource.key]: key }, {}]);
      assert.equal(failed.status, 422);
      assert.ok(failed.json.errors.every(({ pointer }: Row) => String(pointer).startsWith('/1/')));
      told(await send('GET', `/${key}`), 404, 'PGRST116');
    });

    test('422 points at every fault at once', async () => {
      const wrong = (name: string) =>
        [{}, [], null].find((one) => !resource.part.safeParse({ [name]: one }).success);
      const bad = Object.fromEntries(resource.settable.map((name) => [name, wrong(name)]));
      const made = await make();
      const path = `/${keyOf(made)}`;
      for (const [method, below] of [
        ['POST', ''],
        ['PUT', path],
        ['PATCH', path],
      ] as const) {
        const reply = await send(method, below, { ...bad, toString: 1 });
        assert.equal(reply.status, 422, reply.text);
        const pointers = reply.json.errors.map(({ pointer }: Row) => pointer);
        assert.deepEqual(
          pointers,
          [...resource.settable, 'toString'].map((one) => `/${one}`),
        );
      }
      assert.deepEqual((await send('GET', path)).json, made);
    });

    test('a filter by each column finds its rows alone', async () => {
      const [one, two] = [await make(row), await make(other)];
      for (const name of [resource.key, ...resource.settable]) {
        const filter = `${only(one, two)}&${encodeURIComponent(name)}`;
        const value = asFilter(one[name]);
        assert.deepEqual(keysIn(await send('GET', `${filter}=eq.${value}`)), keys(one), name);
        assert.deepEqual(keysIn(await send('GET', `${filter}=neq.${value}`)), keys(two), name);
        assert.deepEqual(keysIn(await send('GET', `${filter}=is.null`)), [], name);
        assert.deepEqual(keysIn(await send('GET', `${filter}=not.is.null`)), keys(one, two), name);
      }
      told(await send('GET', '?toString=eq.1'), 400, '42703');
      told(await send('GET', `?${resource.settable[0]}=is`), 400, 'PGRST100');
    });

    test('an order by each column, and the other way round', async () => {
      const rows = [await make(row), await make(other)];
      for (const name of resource.names) {
        const sorted = async (how: string) => {
          const reply = await send('GET', `${only(...rows)}&order=${name}.${how}`);
          return reply.json.map((one: Row) => JSON.stringify(one[name]));
        };
        assert.deepEqual(await sorted('asc'), (await sorted('desc')).reverse(), name);
      }
    });

    test('pages are counted and linked, and none lacks a row', async () => {
      const rows = [await make(row), await make(other), await make(row)];
      const seen: string[] = [];
      const path = `${only(...rows)}&limit=2&order=${resource.settable[0]}.desc`;
      const first = await send('GET', path, undefined, { prefer: 'count=exact' });
      assert.equal(first.headers.get('content-range'), '0-1/3');
      assert.equal(first.status, 206);
      let link = /^<(.*)>; rel="next"$/.exec(String(first.headers.get('link')))?.[1] ?? '';
      assert.ok(link.startsWith(`${at}?`), link);
      seen.push(...keysIn(first));
      const next = await send('GET', link.slice(at.length));
      seen.push(...keysIn(next));
      link = String(next.headers.get('link'));
      assert.equal(link, 'null');
      assert.deepEqual(seen.sort(), keys(...rows));
    });

    test('select counts, in all and by each column', async () => {
      const rows = [await make(row), await make(row), await make(other)];
      const list = `${only(...rows)}&select=`;
      assert.deepEqual((await send('GET', `${list}count()`)).json, [{ count: 3 }]);
      for (const name of resource.settable.filter((one) => resource.columns[one]?.csv)) {
        const groups = (await send('GET', `${list}${name},count()`)).json;
        const counts = Object.fromEntries(groups.map((one: Row) => [one[name], one.count]));
        assert.deepEqual(counts, { [`${row[name]}`]: 2, [`${other[name]}`]: 1 });
      }
    });

    test('PUT creates, replaces, and keeps to If-None-Match', async () => {
      const path = `/${randomUUID()}`;
      const created = await send('PUT', path, row);
      assert.deepEqual([created.status, created.headers.get('location')], [201, at + path]);
      const replaced = await send('PUT', path, other);
      assert.equal(replaced.status, 200);
      assert.deepEqual(part(replaced.json, resource.settable), other);
      const never = await send('PUT', path, row, { 'if-none-match': '*' });
      assert.equal(never.status, 412);
      const elsewhere = await send('PUT', path, { ...row, [resource.key]: randomUUID() });
      assert.equal(elsewhere.json.errors[0].pointer, `/${resource.key}`);
      assert.deepEqual((await send('GET', path)).json, replaced.json);
    });

    test('PATCH sets one column and leaves the rest', async () => {
      const made = await make();
      for (const name of resource.settable) {
        const path = `/${keyOf(await make())}`;
        const { status, json } = await send('PATCH', path, part(other, [name]));
        const wanted = { ...made, [name]: other[name], [resource.key]: path.slice(1) };
        assert.deepEqual([status, json], [200, wanted]);
      }
    });

    test('PATCH and DELETE by a filter change what passes, and never all by mistake', async () => {
      const [one, two, three] = [await make(), await make(), await make()];
      const shown = { prefer: 'return=representation' };
      const patched = await send('PATCH', only(one, two), other, shown);
      assert.deepEqual(keysIn(patched), keys(one, two));
      assert.deepEqual((await send('GET', `/${keyOf(three)}`)).json, three);
      for (const method of ['PATCH', 'DELETE'])
        told(await send(method, '', method === 'PATCH' ? other : undefined), 400, '21000');
      const strict = { prefer: 'handling=strict, max-affected=1' };
      told(await send('DELETE', only(one, two), undefined, strict), 400, 'PGRST124');
      assert.equal((await send('DELETE', only(one, two))).status, 204);
      assert.deepEqual(keysIn(await send('GET', only(one, two, three))), keys(three));
    });

    test('DELETE removes a row once', async () => {
      const path = `/${keyOf(await make())}`;
      assert.equal((await send('DELETE', path)).status, 204);
      for (const method of ['DELETE', 'GET']) told(await send(method, path), 404, 'PGRST116');
      told(await send('PATCH', path, {}), 404, 'PGRST116');
    });

    test('CSV comes and goes, where every column can', async () => {
      const names = [resource.key, ...resource.settable];
      const csv = { 'content-type': 'text/csv' };
      const [key, quote] = [randomUUID(), (value: unknown) => `"${value}"`];
      const line = [key, ...Object.values(row)].map(quote).join(',');
      const reply = await send('POST', '', `${names}\n${line}\n`, csv);
      if (resource.settable.some((name) => resource.columns[name]?.type === 'jsonb')) {
        told(reply, 400, 'PGRST204');
        await make({ ...row, [resource.key]: key });
      } else assert.deepEqual([reply.status, reply.headers.get('content-range')], [201, '*/1']);
      const made = (await send('GET', `/${key}`)).json;
      assert.deepEqual(part(made, resource.settable), row);
      const accept = { accept: 'text/csv' };
      const { text } = await send('GET', `${only(made)}&select=${names}`, undefined, accept);
      assert.equal(text.split('\n')[0], names.join());
      assert.ok(text.split('\n')[1]?.startsWith(key), text);
      const lines = await send('GET', only(made), undefined, { accept: 'application/x-ndjson' });
      assert.deepEqual(JSON.parse(lines.text), made);
    });

    test('409 where the key is there, and an upsert where it is wanted', async () => {
      const made = await make();
      told(await send('POST', '', { ...row, [resource.key]: keyOf(made) }), 409, '23505');
      const merge = { prefer: 'resolution=merge-duplicates,return=representation' };
      const body = { ...other, [resource.key]: keyOf(made) };
      const { status, json } = await send('POST', '', body, merge);
      assert.deepEqual([status, json], [200, [{ ...made, ...other }]]);
    });

    test('If-Match lets the faster of two writers win', async () => {
      const made = await send('POST', '', row);
      const path = `/${keyOf(made.json)}`;
      const tag = { 'if-match': String(made.headers.get('etag')) };
      assert.equal((await send('PATCH', path, other, tag)).status, 200);
      for (const method of ['PATCH', 'PUT', 'DELETE']) {
        const late = await send(method, path, method === 'DELETE' ? undefined : row, tag);
        assert.equal(late.status, 412, method);
      }
      const now = (await send('GET', path)).json;
      assert.deepEqual(part(now, resource.settable), other);
    });

    test('an Idempotency-Key creates once, whatever is repeated', async () => {
      const key = { 'idempotency-key': randomUUID() };
      const replies = await Promise.all(
        Array.from({ length: 8 }, () => send('POST', '', row, key)),
      );
      assert.deepEqual([...new Set(replies.map(({ status }) => status))], [201]);
      assert.equal(new Set(replies.map(({ json }) => keyOf(json))).size, 1);
      const again = await send('POST', '', row, key);
      assert.equal(again.headers.get('idempotent-replayed'), 'true');
      told(await send('POST', '', other, key), 409, '23505');
    });

    test('OPTIONS tells version, branch, commit and uri', async () => {
      const { status, json, headers } = await service.request('OPTIONS', at);
      const methods = ['GET', 'HEAD', 'POST', 'PATCH', 'DELETE', 'OPTIONS'];
      const build = { version: '1.2.3', branch: 'main', commit: 'abc1234' };
      assert.deepEqual([status, json], [200, { name: resource.path, ...build, uri: at, methods }]);
      assert.equal(headers.get('allow'), methods.join(', '));
    });

    test('/openapi.json is valid, and its examples are taken', async () => {
      const { json } = await service.get(`${base}/openapi.json`);
      const good = { errors: 0, warnings: 0, ignored: 0, problems: [] };
      assert.deepEqual(await lint(resource.path, json), good);
      assert.deepEqual(json.servers, [{ url: base || '/' }]);
      assert.deepEqual(Object.keys(json.components.schemas.Row.properties), resource.names);
      const { post } = json.paths[`/${resource.path}`];
      const { examples } = post.requestBody.content['application/json'];
      for (const { value } of Object.values<{ value: object }>(examples))
        assert.equal((await send('POST', '', value)).status, 201);
      assert.deepEqual(post.security, resource.owner ? [{ bearer: [] }] : []);
    });

    test('below /rest/v1 PostgREST’s clients find it, and elsewhere there is nothing', async () => {
      const { key } = resource;
      const headers = resource.owner ? await asOwner(resource) : {};
      const path = `${base}/rest/v1/${resource.path}`;
      const made = await service.request('POST', path, row, headers);
      assert.deepEqual([made.status, made.text], [201, '']);
      const found = String(made.headers.get('location'));
      assert.ok(found.startsWith(`${path}/`), found);
      assert.equal((await service.get(found, headers)).json[key], found.split('/').at(-1));
      for (const nowhere of ['/', '/toString', ...(base ? [`/${resource.path}`, '/docs'] : [])])
        told(await service.get(nowhere, headers), 404, 'PGRST125');
    });
  });
}

/** What `node app.ts …args` with an environment prints, and its exit code. */
function run(args: string[], environment: Record<string, string> = {}) {
  const env = { ...inherited(), ...environment };
  const all = [...nodeArguments, 'app.ts', ...args];
  return promisify(execFile)(process.execPath, all, { env, cwd: ROOT, timeout: 30_000 });
}

describe('Another resource', () => {
  const asked = () => ({ DATABASE_URL: database.url, ...SHOP });
  const namesOf = async ({ request }: TestService) => {
    const close = { connection: 'close' };
    const replies = Array.from({ length: 20 }, () => request('OPTIONS', '/', undefined, close));
    return new Set((await Promise.all(replies)).map(({ json }) => json.name));
  };

  const ways: [string, string[], Record<string, string>][] = [
    ['by an argument', ['examples/orders.ts'], {}],
    ['by RESOURCE', [], { RESOURCE: 'examples/orders.ts' }],
    ['by an argument before RESOURCE', ['examples/orders.ts'], { RESOURCE: 'examples/cities.ts' }],
  ];
  for (const [way, args, environment] of ways) {
    for (const WEB_CONCURRENCY of ['1', '2']) {
      test(`is served ${way}, by ${WEB_CONCURRENCY} process(es)`, async () => {
        const options = { args, cwd: ROOT };
        const all = { ...asked(), WEB_CONCURRENCY, ...environment };
        const service = await startService(all, options);
        const listening = () => service.log.filter(({ msg }) => msg === 'listening').length;
        await until(() => listening() === Number(WEB_CONCURRENCY));
        assert.deepEqual(await namesOf(service), new Set(['orders']));
        assert.equal(await service.stop(), 0);
      });
    }
  }

  test('is not in the way of token', async () => {
    const { stdout } = await run(['examples/orders.ts', 'token', '--sub', 'user:token'], SHOP);
    const payload = JSON.parse(Buffer.from(stdout.split('.')[1] ?? '', 'base64url').toString());
    assert.deepEqual([payload.sub, payload.aud], ['user:token', SHOP.JWT_AUDIENCE]);
  });

  const wrong: [string, string, RegExp][] = [
    ['is not there', '', /cannot be imported: Cannot find module/],
    ['is not TypeScript', 'export default 1 +;', /cannot be imported: /],
    ['throws', "throw new Error('by itself')", /cannot be imported: by itself/],
    ['exports nothing', 'export const a = 1;', /no default export that resource\(\) made/],
    ['exports no resource', 'export default { path: 1 };', /no default export that resource\(\)/],
    [
      'declares what cannot be',
      "export default resource({ path: 'a', table: 'a', key: 'id', columns: { id: boolean() } });",
      /"id" cannot be the name of a column/,
    ],
  ];
  for (const [at, [fault, text, message]] of wrong.entries()) {
    test(`ends with 2 and its name where the file ${fault}`, async () => {
      const app = JSON.stringify(new URL('../app.ts', import.meta.url).href);
      const name = `wrong-${at}.ts`;
      if (text) await write(name, `import { boolean, resource } from ${app};\n${text}\n`);
      const file = join(directory, name);
      const failed = await run([file], asked()).catch((error) => error);
      assert.equal(failed.code, 2, failed.stdout);
      const { msg } = JSON.parse(failed.stdout.trim());
      assert.ok(msg.startsWith(`RESOURCE ${file} `), msg);
      assert.match(msg, message);
    });
  }

  test('that has an owner ends with 2 where nobody could be one', async () => {
    for (const environment of [{}, { AUTH: 'none' }, { JWT_SECRET: SECRET, AUTH: 'write' }]) {
      const all = { DATABASE_URL: database.url, ...environment };
      const failed = await run(['examples/orders.ts'], all).catch((error) => error);
      assert.equal(failed.code, 2, failed.stdout);
      assert.match(
        failed.stdout,
        /AUTH=all with JWT_SECRET or JWKS_URL is required: rows have a user/,
      );
    }
  });
});
