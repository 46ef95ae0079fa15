/**
 * An order belongs to its caller: many callers at once, in the same groups, see and change only
 * their own. The real process with two connections, so that requests wait and are grouped.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Row } from '../test/deployment.ts';
import { bearer, openService, type Reply, startProxy, startReady } from '../test/harness.ts';

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const AUDIENCE = { aud: 'shop-example' };
const SHOWN = { prefer: 'return=representation' };
const CALLERS = 20;
const USER = `user:${randomUUID()}`;

const ENVIRONMENT = {
  RESOURCE: fileURLToPath(new URL('orders.ts', import.meta.url)),
  ...{ POOL_SIZE: '2', JWT_SECRET: SECRET, JWT_AUDIENCE: AUDIENCE.aud },
};
const { database, service } = await openService(ENVIRONMENT);

type Send = (method: string, path: string, body?: unknown, headers?: object) => Promise<Reply>;
type Caller = { sub: string; send: Send; rows: Row[] };

/** A caller with as many orders; `send` goes below /orders. */
async function call(orders = 0, to = service, sub = `user:${randomUUID()}`): Promise<Caller> {
  const own = await bearer(SECRET, sub, AUDIENCE);
  const send: Send = (method, path, body, headers) =>
    to.request(method, `/orders${path}`, body, { ...own, ...headers });
  const made = await Promise.all(Array.from({ length: orders }, () => send('POST', '', order())));
  const rows = made.map(({ json }): Row => json);
  return { sub, send, rows: rows.sort((a, b) => (`${a.uuid}` < `${b.uuid}` ? -1 : 1)) };
}

async function callers(orders: number, count = CALLERS): Promise<[Caller, Caller, ...Caller[]]> {
  const all = await Promise.all(Array.from({ length: count }, () => call(orders)));
  return all as [Caller, Caller, ...Caller[]];
}

function order(values: Row = {}): Row {
  return { products: [{ uuid: randomUUID(), quantity: 1 }], ...values };
}

async function assertUntouched(all: Caller[]): Promise<void> {
  for (const { send, rows } of all) assert.deepEqual((await send('GET', '')).json, rows);
}

/** Asserts that the requests of a kind went to the database in groups of more than two. */
async function assertGrouped(kind: string): Promise<void> {
  const { text } = await service.get('/metrics', await bearer(SECRET, USER, AUDIENCE));
  const value = (of: string) =>
    Number(new RegExp(`^db_batch_size_${of}{work="${kind}"} (\\d+)`, 'm').exec(text)?.[1]);
  assert.ok(value('sum') > 2 * value('count'), `${value('sum')} in ${value('count')}`);
}

test("each caller reads its own row; another's is as one that does not exist", async () => {
  const all = await callers(1);
  const absent = await all[0].send('GET', `/${randomUUID()}`);
  for (const { sub, rows } of all) {
    const replies = await Promise.all(all.map(({ send }) => send('GET', `/${rows[0]?.uuid}`)));
    for (const [at, { status, json, headers }] of replies.entries()) {
      if (all[at]?.sub === sub) assert.deepEqual([status, json], [200, rows[0]]);
      else assert.deepEqual([status, json], [404, absent.json]);
      if (status === 404) assert.deepEqual([...headers.keys()], [...absent.headers.keys()]);
    }
  }
  await assertGrouped('read');
});

const LISTS = [
  ...['', '?order=uuid&fulfilled=is.false', '?user=like.user:*', '?user=in.(ALL)'],
  '?or=(user.is.null,user.not.is.null)',
];
for (const query of LISTS) {
  test(`each caller lists its own rows by "${query}"`, async () => {
    const all = await callers(3);
    const path = query.replace('ALL', all.map(({ sub }) => `"${sub}"`).join());
    const replies = await Promise.all([...all, ...all].map(({ send }) => send('GET', path)));
    for (const [at, { json }] of replies.entries()) assert.deepEqual(json, all[at % CALLERS]?.rows);
  });
}

test('each caller counts, pages and streams its own rows', async () => {
  const [one, two] = await callers(3, 2);
  const page = await one.send('GET', '?limit=1', undefined, { prefer: 'count=exact' });
  assert.equal(page.headers.get('content-range'), '0-0/3');
  const [, next = ''] = /^<\/orders(.*)>;/.exec(String(page.headers.get('link'))) ?? [];
  for (const { user } of (await two.send('GET', next)).json) assert.equal(user, two.sub);
  const groups = await two.send('GET', '?select=user,count()');
  assert.deepEqual(groups.json, [{ user: two.sub, count: 3 }]);
  for (const accept of ['text/csv', 'application/x-ndjson']) {
    const streams = [one, two].map(({ send }) => send('GET', '', undefined, { accept }));
    const users = (await Promise.all(streams)).map(({ text }) => text.match(/user:[\w-]+/g));
    assert.deepEqual(users, [Array(3).fill(one.sub), Array(3).fill(two.sub)]);
  }
});

test('own and foreign rows that are changed in one group: the own rows alone change', async () => {
  const all = await callers(2);
  const foreign = (at: number) => all[(at + 1) % CALLERS]?.rows[0]?.uuid;
  for (const method of ['PATCH', 'PUT', 'DELETE']) {
    const body = { PATCH: { fulfilled: true }, PUT: order() }[method];
    const requests = all.flatMap(({ send, rows }, at) => [
      send(method, `/${rows[1]?.uuid}`, body),
      send(method, `/${foreign(at)}`, body),
    ]);
    const statuses = (await Promise.all(requests)).map((reply) => reply.status);
    const expected = all.flatMap(() => [method === 'DELETE' ? 204 : 200, 404]);
    assert.deepEqual(statuses, expected, method);
  }
  await assertUntouched(all.map((caller) => ({ ...caller, rows: caller.rows.slice(0, 1) })));
  await assertGrouped('delete');
});

/** Writes of another caller than USER, who has the row THEIRS; its ETag is put in for TAG. */
const THEIRS = randomUUID();
const TAG = { 'if-match': 'TAG' };
const MERGE = { prefer: 'resolution=merge-duplicates,return=representation' };
const IGNORE = { prefer: 'resolution=ignore-duplicates,return=representation' };
const WRITES: [method: string, path: string, body: unknown, headers: object, status: number][] = [
  ['PATCH', `?uuid=in.(${THEIRS})`, { fulfilled: true }, SHOWN, 200],
  ['PATCH', `?user=eq.${USER}`, { fulfilled: true }, SHOWN, 200],
  ['PATCH', '', [{ uuid: THEIRS, fulfilled: true }], SHOWN, 200],
  ['DELETE', `?or=(user.eq.${USER},user.is.null)`, undefined, SHOWN, 200],
  ['POST', '', [order({ uuid: THEIRS })], MERGE, 409],
  ['POST', '', [order(), order({ uuid: THEIRS })], MERGE, 409],
  ['POST', '', [order({ uuid: THEIRS })], IGNORE, 200],
  ['POST', '', [order({ uuid: THEIRS })], SHOWN, 409],
  ['POST', '', order({ uuid: THEIRS }), SHOWN, 409],
  ['PATCH', `/${THEIRS}`, { fulfilled: true }, TAG, 404],
  ['DELETE', `/${THEIRS}`, undefined, TAG, 404],
  ['PUT', `/${THEIRS}`, order(), TAG, 412],
  ['PUT', `/${THEIRS}`, order(), { 'if-none-match': '*' }, 412],
];
for (const [at, [method, path, body, headers, status]] of WRITES.entries()) {
  test(`${at}: ${method} ${path} changes nothing of another's and shows nothing`, async () => {
    const [victim, caller] = [await call(0, service, USER), await call(1)];
    const theirs = await victim.send('PUT', `/${THEIRS}`, order());
    const preconditions = headers === TAG && { 'if-match': theirs.headers.get('etag') };
    const reply = await caller.send(method, path, body, { ...headers, ...preconditions });
    assert.equal(reply.status, status, reply.text);
    if (status === 200) assert.equal(reply.text, '[]');
    else assert.doesNotMatch(reply.text, /quantity|user:/);
    await assertUntouched([{ ...victim, rows: [theirs.json] }, caller]);
  });
}

for (const method of ['PUT', 'POST']) {
  test(`of ${CALLERS} callers that ${method} the same new key one has it`, async () => {
    const [all, uuid] = [await callers(0), randomUUID()];
    const path = method === 'PUT' ? `/${uuid}` : '';
    const replies = await Promise.all(all.map(({ send }) => send(method, path, order({ uuid }))));
    const statuses = replies.map(({ status }) => status).sort();
    const refusals = Array(CALLERS - 1).fill(method === 'PUT' ? 404 : 409);
    assert.deepEqual(statuses, [201, ...refusals]);
    for (const [at, { status, text }] of replies.entries()) {
      const read = await all[at]?.send('GET', `/${uuid}`);
      assert.equal(read?.status, status === 201 ? 200 : 404);
      if (status !== 201) assert.doesNotMatch(text, /quantity|user:/);
    }
  });
}

test('the same Idempotency-Key makes a row per caller, and repeats its own to each', async () => {
  const [all, body, key] = [await callers(0), order(), { 'idempotency-key': randomUUID() }];
  const create = () => Promise.all(all.map(({ send }) => send('POST', '', body, key)));
  const [first, again] = [await create(), await create()];
  for (const [at, { json, headers }] of again.entries()) {
    assert.deepEqual([json, json.user], [first[at]?.json, all[at]?.sub]);
    assert.equal(headers.get('idempotent-replayed'), 'true');
  }
});

test("a create that is repeated after its answer was lost finds no other's row", async (t) => {
  const proxy = await startProxy(database.url);
  t.after(proxy.stop);
  const through = await startReady({ ...ENVIRONMENT, DATABASE_URL: proxy.url });
  t.after(() => through.stop());
  const [{ rows, sub }, other] = [await call(1), await call(0, through)];
  const body = order({ uuid: rows[0]?.uuid });
  for (const sent of [[body], body]) {
    const lost = proxy.dropReply(String(body.uuid));
    const [reply] = await Promise.all([other.send('POST', '', sent, SHOWN), lost]);
    assert.equal(reply.status, 409, reply.text);
    assert.ok(!reply.text.includes(sub));
  }
});

const BODIES: [method: string, path: string, body: Row | Row[]][] = [
  ['POST', '', order({ user: USER })],
  ['POST', '?columns=products,user', [order({ user: USER })]],
  ['PUT', `/${randomUUID()}`, order({ user: USER })],
  ['PATCH', `/${randomUUID()}`, { user: USER }],
  ['PATCH', `?user=eq.${USER}`, { user: null }],
  ['PATCH', '', [{ uuid: randomUUID(), user: USER }]],
];
for (const [at, [method, path, body]] of BODIES.entries()) {
  test(`${at}: ${method} ${path} cannot set the owner`, async () => {
    const { send } = await call(0, service, USER);
    const { status, json } = await send(method, path, body);
    assert.deepEqual([status, json.code], [422, 'PGRST204']);
    assert.match(json.errors[0].pointer, /^(\/0)?\/user$/);
  });
}

for (const sub of [USER.replace('user', 'bot'), USER.slice(5), `${USER}\n`, `x${USER}`]) {
  test(`the owner cannot be ${JSON.stringify(sub)}: every request is 403`, async () => {
    const own = await bearer(SECRET, sub, AUDIENCE);
    for (const path of [
      '/orders?uuid=in.()',
      '/rest/v1/orders?uuid=in.()',
      `/orders/${randomUUID()}`,
    ])
      for (const [method, body] of [['GET'], ['PATCH', {}], ['DELETE']] as const)
        assert.equal((await service.request(method, path, body, own)).status, 403);
    assert.equal((await service.request('POST', '/orders', order(), own)).status, 403);
  });
}
