/**
 * Whose an order is: many callers at once, in the same groups, none of whom sees or changes what
 * is another's. The real process with two connections, so that requests wait and are grouped.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Row } from '../app.ts';
import {
  bearer,
  type Reply,
  startDatabase,
  startProxy,
  startReady,
  type TestDatabase,
  type TestService,
} from '../test/harness.ts';

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const SHOP = { JWT_SECRET: SECRET, JWT_AUDIENCE: 'shop-example' };
const aud = SHOP.JWT_AUDIENCE;
const ORDERS = fileURLToPath(new URL('orders.ts', import.meta.url));
const APP = new URL('../app.ts', import.meta.url).href;
const CSV = { 'content-type': 'text/csv' };
const SHOWN = { prefer: 'return=representation' };
const MANY = 20;

let database: TestDatabase;
let service: TestService;
before(async () => {
  database = await startDatabase();
  service = await start({ RESOURCE: ORDERS });
});
after(async () => {
  await service?.stop();
  await database?.stop();
});

async function start(environment: Record<string, string>): Promise<TestService> {
  const common = { DATABASE_URL: database.url, POOL_SIZE: '2', ...SHOP };
  return startReady({ ...common, ...environment });
}

type Send = (method: string, path: string, body?: unknown, headers?: object) => Promise<Reply>;
type Caller = { sub: string; send: Send };

async function call(sub = `user:${randomUUID()}`, base = '/orders', to = service): Promise<Caller> {
  const own = await bearer(SECRET, sub, { aud });
  const send: Send = (method, path, body, headers) =>
    to.request(method, base + path, body, { ...own, ...headers });
  return { sub, send };
}

function body(): Row {
  return { products: [{ uuid: randomUUID(), quantity: 1 }] };
}

async function make({ send }: Caller): Promise<Row> {
  const { status, json, text } = await send('POST', '', body());
  assert.equal(status, 201, text);
  return json;
}

type Owner = Caller & { rows: Row[] };

/** Callers with three orders each, made at once. */
function owners(count = MANY): Promise<Owner[]> {
  return Promise.all(
    Array.from({ length: count }, async () => {
      const caller = await call();
      return { ...caller, rows: await Promise.all([make(caller), make(caller), make(caller)]) };
    }),
  );
}

function sorted(rows: Row[]): Row[] {
  return rows.toSorted((a, b) => (String(a.uuid) < String(b.uuid) ? -1 : 1));
}

/** All that an answer shows, but for what differs from request to request. */
function shown({ status, headers, text }: Reply) {
  const own = /^(x-request-id|server-timing|date|keep-alive)$/;
  return [status, text, [...headers].filter(([name]) => !own.test(name))];
}

/** Every owner still has what was made, untouched: the ETag would tell. */
async function assertUntouched(all: Owner[], tags: string[]): Promise<void> {
  for (const [at, { send, rows }] of all.entries()) {
    assert.deepEqual(sorted((await send('GET', '')).json), sorted(rows));
    assert.equal((await send('GET', `/${rows[0]?.uuid}`)).headers.get('etag'), tags[at]);
  }
}

function tagsOf(all: Owner[]): Promise<string[]> {
  const read = async ({ send, rows }: Owner) =>
    String((await send('GET', `/${rows[0]?.uuid}`)).headers.get('etag'));
  return Promise.all(all.map(read));
}

/** How many requests, and how many statements for them, a kind of work took. */
async function groupsOf(work: string): Promise<[requests: number, statements: number]> {
  const { text } = await (await call(undefined, '/metrics')).send('GET', '');
  const value = (which: string) =>
    Number(new RegExp(`^db_batch_size_${which}{work="${work}"} (\\d+)`, 'm').exec(text)?.[1]);
  return [value('sum'), value('count')];
}

describe('Of many callers at once', () => {
  for (const count of [2, MANY]) {
    test(`each of ${count} reads its own rows; another's is 404, as one that is not there`, async () => {
      const all = await owners(count);
      const nowhere = shown(await (all[0] as Owner).send('GET', `/${randomUUID()}`));
      for (let at = 0; at < 3; at += 1) {
        for (const { sub, rows } of all) {
          const path = `/${rows[at]?.uuid}`;
          const replies = await Promise.all(all.map(({ send }) => send('GET', path)));
          for (const [by, reply] of replies.entries()) {
            if (all[by]?.sub !== sub) assert.deepEqual(shown(reply), nowhere);
            else assert.deepEqual([reply.status, reply.json], [200, rows[at]]);
          }
        }
      }
      if (count < MANY) return;
      const [requests, statements] = await groupsOf('read');
      assert.ok(requests > 2 * statements, `${requests} reads in ${statements} statements`);
    });
  }

  test('each lists its own rows, whatever is asked and however equal', async () => {
    const all = await owners();
    const queries: [string, object?][] = [
      ...([[''], ['?order=orderDate.desc'], ['?fulfilled=is.false'], ['?select=*']] as [string][]),
      ...([['?or=(user.is.null,user.not.is.null)'], ['?user=like.user:*']] as [string][]),
      [`?user=in.(${all.map(({ sub }) => `"${sub}"`)})`],
      [`?uuid=in.(${all.flatMap(({ rows }) => rows.map(({ uuid }) => uuid))})`],
      ['', { accept: 'application/x-ndjson' }],
    ];
    for (const [query, headers] of queries) {
      const streamed = headers !== undefined; // of which there are four at once
      const ask = ({ send }: Owner) => send('GET', query, undefined, headers);
      const replies: Reply[] = [];
      if (streamed) for (const one of all) replies.push(await ask(one));
      else replies.push(...(await Promise.all([...all, ...all].map(ask))));
      for (const [at, reply] of replies.entries()) {
        assert.equal(reply.status, 200, reply.text);
        const { rows = [] } = all[at % MANY] ?? {};
        const found = streamed
          ? reply.text
              .trim()
              .split('\n')
              .map((one) => JSON.parse(one))
          : reply.json;
        assert.deepEqual(sorted(found), sorted(rows), query);
      }
    }
  });

  test('each counts, pages and streams its own rows', async () => {
    const [one, two] = (await owners(2)) as [Owner, Owner];
    const theirs = await one.send('GET', '?limit=1');
    const link = /^<\/orders(.*)>;/.exec(String(theirs.headers.get('link')))?.[1] ?? '';
    const behind = await two.send('GET', link.replace('limit=1', 'limit=9'));
    assert.equal(behind.status, 200, behind.text);
    for (const { user } of behind.json) assert.equal(user, two.sub);
    for (const { send, sub, rows } of [one, two]) {
      const counted = await send('GET', '?limit=1', undefined, { prefer: 'count=exact' });
      assert.equal(counted.headers.get('content-range'), '0-0/3');
      const head = await send('HEAD', '', undefined, { prefer: 'count=exact' });
      assert.equal(head.headers.get('content-range'), '0-2/3');
      const groups = await send('GET', '?select=user,count()');
      assert.deepEqual(groups.json, [{ user: sub, count: 3 }]);
      const csv = await send('GET', '?select=uuid,user', undefined, { accept: 'text/csv' });
      const lines = sorted(rows).map(({ uuid }) => `${uuid},${sub}`);
      assert.equal(csv.text, `uuid,user\n${lines.map((line) => `${line}\n`).join('')}`);
    }
  });

  test('equal CSV and NDJSON streams at once are not mixed', async () => {
    const all = await owners(4);
    for (const accept of ['text/csv', 'application/x-ndjson']) {
      for (let round = 0; round < 5; round += 1) {
        const replies = await Promise.all(
          all.map(({ send }) => send('GET', '', undefined, { accept })),
        );
        for (const [at, { status, text }] of replies.entries()) {
          if (status === 503) continue; // a stream of before is still being closed
          const users = new Set(text.match(/user:[\w-]+/g));
          assert.deepEqual([status, [...users]], [200, [all[at]?.sub]]);
        }
      }
    }
  });

  test("none changes, replaces or deletes another's row, with its ETag or without", async () => {
    const all = await owners();
    const tags = await tagsOf(all);
    const nowhere = async (method: string, headers: object) => {
      const { send } = all[0] as Owner;
      return shown(
        await send(method, `/${randomUUID()}`, method === 'DELETE' ? undefined : {}, headers),
      );
    };
    for (const [method, strict] of [
      ['PATCH', false],
      ['PATCH', true],
      ['DELETE', false],
      ['DELETE', true],
    ] as const) {
      const victims = all.map(({ rows }) => rows[0]?.uuid);
      const absent = await nowhere(method, strict ? { 'if-match': '"1"' } : {});
      for (let step = 1; step < 4; step += 1) {
        const replies = await Promise.all(
          all.map(({ send }, at) => {
            const victim = (at + step) % MANY;
            const headers = strict ? { 'if-match': tags[victim] } : {};
            const sent = method === 'DELETE' ? undefined : { fulfilled: true };
            return send(method, `/${victims[victim]}`, sent, headers);
          }),
        );
        for (const reply of replies) assert.deepEqual(shown(reply), absent);
      }
    }
    for (const headers of [{}, { 'if-match': '*' }, { 'if-none-match': '*' }]) {
      const status = 'if-none-match' in headers || 'if-match' in headers ? 412 : 404;
      const puts = all.map(({ send }, at) =>
        send('PUT', `/${all[(at + 1) % MANY]?.rows[0]?.uuid}`, body(), headers),
      );
      for (const reply of await Promise.all(puts)) assert.equal(reply.status, status, reply.text);
    }
    await assertUntouched(all, tags);
  });

  test('a DELETE of an own row and of a foreign one go in one statement, and only the own is gone', async () => {
    const all = await owners();
    const deletes = all.flatMap(({ send, rows }, at) => [
      send('DELETE', `/${rows[1]?.uuid}`),
      send('DELETE', `/${all[(at + 1) % MANY]?.rows[0]?.uuid}`),
    ]);
    const statuses = (await Promise.all(deletes)).map(({ status }) => status);
    assert.deepEqual(
      statuses,
      all.flatMap(() => [204, 404]),
    );
    const kept = all.map(({ rows: [one = {}, , three = {}], ...caller }) => ({
      ...caller,
      rows: [one, three],
    }));
    await assertUntouched(kept, await tagsOf(kept));
    const [requests, statements] = await groupsOf('delete');
    assert.ok(requests > 2 * statements, `${requests} deletes in ${statements} statements`);
  });

  test('filters, arrays and upserts of writes reach own rows alone', async () => {
    const [one, two] = (await owners(2)) as [Owner, Owner];
    const tags = await tagsOf([one, two]);
    const keys = one.rows.map(({ uuid }) => uuid);
    const at = `?uuid=in.(${keys})`;
    const strict = { prefer: 'return=representation, handling=strict, max-affected=3' };
    const tries: [string, string, unknown, object][] = [
      ['PATCH', at, { fulfilled: true }, SHOWN],
      ['PATCH', `?user=eq.${one.sub}`, { fulfilled: true }, SHOWN],
      ['PATCH', '', keys.map((uuid) => ({ uuid, fulfilled: true })), SHOWN],
      ['DELETE', at, undefined, SHOWN],
      ['DELETE', `?or=(user.eq.${one.sub},user.neq.${two.sub})`, undefined, SHOWN],
    ];
    for (const [method, path, sent, headers] of tries) {
      const { status, json } = await two.send(method, path, sent, headers);
      assert.deepEqual([status, json], [200, []], `${method} ${path}`);
    }
    for (const resolution of ['merge', 'ignore']) {
      const prefer = `resolution=${resolution}-duplicates,return=representation`;
      const rows = keys.map((uuid) => ({ ...body(), uuid }));
      const { status, json } = await two.send('POST', '', rows, { prefer });
      assert.deepEqual([status, json], [200, []]);
    }
    for (const sent of [{ ...body(), uuid: keys[0] }, [{ ...body(), uuid: keys[0] }]]) {
      const { status, text } = await two.send('POST', '', sent, SHOWN);
      assert.equal(status, 409);
      assert.ok(!text.includes(one.sub) && !text.includes('quantity'), text);
    }
    await assertUntouched([one, two], tags);
    const all = await two.send('PATCH', '', { fulfilled: true }, strict);
    assert.deepEqual([all.status, all.json.length], [200, 3]);
    const gone = await two.send('DELETE', '', undefined, strict);
    assert.deepEqual([gone.status, gone.json.length], [200, 3]);
    await assertUntouched([one], tags);
  });

  for (const method of ['PUT', 'POST']) {
    test(`one of ${MANY} who ${method} the same new key has it, the others learn nothing`, async () => {
      const callers = await Promise.all(Array.from({ length: MANY }, () => call()));
      const uuid = randomUUID();
      const path = method === 'PUT' ? `/${uuid}` : '';
      const sent = callers.map((): Row => ({ ...body(), uuid }));
      const replies = await Promise.all(
        callers.map(({ send }, at) => send(method, path, sent[at])),
      );
      const won = replies.findIndex(({ status }) => status === 201);
      const refused = method === 'PUT' ? 404 : 409;
      for (const [at, { status, text }] of replies.entries()) {
        assert.equal(status, at === won ? 201 : refused, text);
        if (at !== won) assert.ok(!text.includes('quantity'), text);
        const read = await callers[at]?.send('GET', `/${uuid}`);
        if (at !== won) assert.equal(read?.status, 404);
        else assert.deepEqual(read?.json.products, sent[at]?.products);
      }
    });
  }

  test('the same Idempotency-Key is a row for each caller, and is repeated to each its own', async () => {
    const callers = await Promise.all(Array.from({ length: MANY }, () => call()));
    const key = { 'idempotency-key': randomUUID() };
    const sent = body();
    const ask = () => Promise.all(callers.map(({ send }) => send('POST', '', sent, key)));
    const [first, again] = [await ask(), await ask()];
    assert.equal(new Set(first.map(({ json }) => json.uuid)).size, MANY);
    for (const [at, { status, json, headers }] of again.entries()) {
      assert.deepEqual([status, json], [201, first[at]?.json]);
      assert.equal(json.user, callers[at]?.sub);
      assert.equal(headers.get('idempotent-replayed'), 'true');
      assert.deepEqual((await callers[at]?.send('GET', ''))?.json, [json]);
    }
  });
});

test("a create that is repeated after its answer was lost finds no other's row", async (t) => {
  const proxy = await startProxy(database.url);
  t.after(proxy.stop);
  const through = await start({ RESOURCE: ORDERS, DATABASE_URL: proxy.url });
  t.after(() => through.stop());
  const [me, other] = [await call(), await call(undefined, '/orders', through)];
  const { user, ...row } = await make(me);
  for (const sent of [[row], row]) {
    const lost = proxy.dropReply('json_populate_recordset');
    const [reply] = await Promise.all([other.send('POST', '', sent, SHOWN), lost]);
    assert.equal(reply.status, 409, reply.text);
    assert.ok(!reply.text.includes(String(user)));
  }
});

describe('The owner', () => {
  test('comes from no body, whatever the way in', async () => {
    const [me, other] = [await call(), await call()];
    const row = await make(me);
    for (const user of [me.sub, other.sub, null]) {
      const ways: [string, string, unknown, object?][] = [
        ['POST', '', { ...body(), user }],
        ['POST', '', [{ ...body(), user }]],
        ['POST', '', { ...body(), user }, { prefer: 'resolution=merge-duplicates' }],
        ['POST', '?columns=products,user', { ...body(), user }],
        ['PUT', `/${row.uuid}`, { ...body(), user }],
        ['PATCH', `/${row.uuid}`, { user }],
        ['PATCH', `?uuid=eq.${row.uuid}`, { user }],
        ['PATCH', '', [{ uuid: row.uuid, user }]],
      ];
      for (const [method, path, sent, headers] of ways) {
        const { status, json, text } = await me.send(method, path, sent, headers);
        assert.deepEqual([status, json.code], [422, 'PGRST204'], text);
        assert.match(json.errors[0].pointer, /^(\/0)?\/user$/);
      }
    }
    const csv = await me.send('POST', '', 'user\nx\n', CSV);
    assert.deepEqual([csv.status, csv.json.code], [400, 'PGRST204']);
    assert.deepEqual((await me.send('GET', '')).json, [row]);
    assert.deepEqual((await other.send('GET', '')).json, []);
  });

  test('is a token’s: 401 without a good one, 403 for who can own nothing', async () => {
    const me = await call();
    const { uuid } = await make(me);
    const other = 'another-secret-of-32-bytes-or-of-more';
    const refused: [object, number][] = [
      [{}, 401],
      [await bearer(other, me.sub, { aud }), 401],
      [await bearer(SECRET, me.sub), 401],
      [await bearer(SECRET, me.sub, { aud: 'another' }), 401],
      [await bearer(SECRET, me.sub, { aud, exp: 1 }), 401],
      [await bearer(SECRET, me.sub.replace('user:', 'bot:'), { aud }), 403],
      [await bearer(SECRET, `${me.sub}\n`, { aud }), 403],
      [await bearer(SECRET, '', { aud }), 403],
    ];
    for (const [headers, status] of refused) {
      for (const [method, path] of [
        ...[
          ['GET', ''],
          ['POST', ''],
          ['PATCH', '?fulfilled=is.false'],
          ['DELETE', '?uuid=not.is.null'],
        ],
        ...['GET', 'HEAD', 'PUT', 'PATCH', 'DELETE'].map((method) => [method, `/${uuid}`]),
      ] as [string, string][]) {
        for (const base of ['/orders', '/rest/v1/orders']) {
          const sent = /^P/.test(method) ? body() : undefined;
          const reply = await service.request(method, base + path, sent, { ...headers });
          assert.equal(reply.status, status, `${method} ${path} ${reply.text}`);
          assert.equal(reply.headers.has('www-authenticate'), status === 401);
        }
      }
    }
    assert.equal((await me.send('GET', '')).json.length, 1);
  });

  test('is known below /rest/v1, too', async () => {
    const sub = `user:${randomUUID()}`;
    const [here, there] = [await call(sub), await call(sub, '/rest/v1/orders')];
    const row = await make(here);
    await make(await call());
    assert.deepEqual((await there.send('GET', '')).json, [row]);
  });
});

describe('CSV of owned rows', () => {
  const NOTES = `
    import { owner, resource, text } from '${APP}';
    const columns = { note: text(50), by: owner(/^[^]+$/) };
    export default resource({ path: 'notes', table: 'notes', key: 'id', columns });
  `;
  let directory: string;
  let notes: TestService;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'orders test-'));
    await writeFile(join(directory, 'package.json'), '{ "type": "module" }'); // as app.ts is
    await writeFile(join(directory, 'notes.ts'), NOTES);
    notes = await start({ RESOURCE: join(directory, 'notes.ts') });
  });
  after(async () => {
    await notes?.stop();
    await rm(directory, { recursive: true });
  });

  const subs = [
    'a',
    'š',
    'é',
    '日本',
    'a,b',
    'a"b',
    '"a"',
    'a\nb',
    'a\r\n',
    "a'b",
    'a\\b',
    ' a',
    '\\.',
    'NULL',
  ];
  for (const sub of subs) {
    test(`is its caller's, ${JSON.stringify(sub)}`, async () => {
      const [me, plain] = [await call(sub, '/notes', notes), await call('a', '/notes', notes)];
      const before = sub === 'a' ? [] : (await plain.send('GET', '')).json;
      const made = await me.send('POST', '', 'note\n"one, ""two"""\nthrée\n', CSV);
      assert.deepEqual([made.status, made.headers.get('content-range')], [201, '*/2'], made.text);
      const { json } = await me.send('GET', '?select=note,by&order=note');
      assert.deepEqual(json, [
        { note: 'one, "two"', by: sub },
        { note: 'thrée', by: sub },
      ]);
      if (sub !== 'a') assert.deepEqual((await plain.send('GET', '')).json, before);
    });
  }

  test("takes no other's key", async () => {
    const [me, other] = [await call('me', '/notes', notes), await call('other', '/notes', notes)];
    const { json } = await me.send('POST', '', { note: 'mine' });
    const reply = await other.send('POST', '', `id,note\n${json.id},theirs\n`, CSV);
    assert.equal(reply.status, 409, reply.text);
    assert.ok(!reply.text.includes('mine'));
    assert.deepEqual((await other.send('GET', '')).json, []);
    assert.deepEqual((await me.send('GET', '')).json, [json]);
  });
});
