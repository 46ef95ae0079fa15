/**
 * Tests of /openapi.json and /docs of a running service: what the document shows is sent and compared.
 *
 *     SCREENSHOT=1 node --import tsx --test test/openapi.test.ts   makes docs/docs.png anew
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium, type Locator, type Page } from 'playwright-core';
import program, { connect, createApp, endpoints, passengers } from '../app.ts';
import { readConfig } from '../lib/config.ts';
import { openLog } from '../lib/log.ts';
import { bearer, openService, startReady } from './harness.ts';

const ROW = passengers.example;
const KEY = String(ROW.uuid);

const { database, service } = await openService();
const directory = await mkdtemp(join(tmpdir(), 'openapi test-'));
after(() => rm(directory, { recursive: true }));

/** The table with one row, the example; without any where one is to be made. */
async function reset(method: string) {
  await database.sql`truncate titanic`;
  if (method === 'post') return;
  assert.equal((await service.request('PUT', `/passengers/${KEY}`, ROW)).status, 201);
}

/** Rows with the key of the example instead of one that the service made. */
function withKey(json: object): object {
  if (Array.isArray(json)) return json.map(withKey);
  return 'uuid' in json ? { ...json, uuid: KEY } : json;
}

test('the document has the routes of the application, each and no other', async () => {
  const config = readConfig({ DATABASE_URL: database.url });
  const running = connect(config, { resources: program, endpoints }, openLog('silent'));
  const { routes } = createApp(running);
  await running.pool.end();
  const routed = routes.flatMap(({ method, path }) => {
    const described = `${method.toLowerCase()} ${path.replace(/:(\w+)/g, '{$1}')}`;
    return /^(ALL|OPTIONS)$/.test(method) ? [] : [described];
  });
  const { paths } = (await service.get('/openapi.json')).json;
  const described = Object.entries<object>(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  );
  assert.deepEqual(described.sort(), [...new Set(routed)].sort());
});

/** As much of a document as is looked at here. */
type Media = { example?: unknown; examples?: Record<string, { value: unknown }> };
type Operation = {
  requestBody?: { content: Record<string, Media> };
  responses: Record<string, { headers?: object; content: Record<string, Media> }>;
};

/** Method, path, operation, media type and body of each example. */
function examplesOf(paths: Record<string, Record<string, Operation>>) {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, operation]) =>
      Object.entries(operation.requestBody?.content ?? { '': {} }).flatMap(([type, body]) => {
        const values = Object.values(body.examples ?? { one: { value: body.example } });
        return values.map(({ value }) => ({ method, path, operation, type, value }));
      }),
    ),
  );
}

test('every operation, sent as it is shown, gets the answer that is shown', async (t) => {
  const { paths, components } = (await service.get('/openapi.json')).json;
  for (const { method, path, operation, type, value } of examplesOf(paths))
    await t.test(`${method} ${path} ${type} ${JSON.stringify(value)}`, async () => {
      await reset(method);
      const filled = path.replace('{key}', KEY).replace('{file}', 'start.js');
      const isFiltered = filled === path && /^(patch|delete)$/.test(method);
      const { schema } = components.parameters['passengers.column.uuid'];
      const target = isFiltered ? `${path}?uuid=${schema.examples[0]}` : filled;
      const prefer = components.parameters.Prefer.example;
      const headers = { prefer, ...(type && { 'content-type': type }) };
      const reply = await service.request(method.toUpperCase(), target, value, headers);
      assert.equal(reply.status, method === 'post' ? 201 : 200, reply.text);
      const [media = ''] = (reply.headers.get('content-type') ?? '').split(';');
      const { content, headers: declared = {} } = operation.responses[reply.status] ?? {};
      const shown = content?.[media] ?? content?.[media.replace(/\/.*/, '/*')];
      assert.ok(shown, media);
      if (shown.example) assert.deepEqual([withKey(reply.json)].flat(), [shown.example].flat());
      for (const one of ['ETag', 'Location', 'Content-Range', 'Link'])
        assert.ok(!reply.headers.has(one) || one in declared, one);
    });
});

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const browser = CHROMIUM.find((path) => existsSync(path));
const skip = !browser && !process.env.CI ? `no ${CHROMIUM.join(', ')} here` : false;

/** Opens an operation of the page and sends it as it is; the rows of the answer. */
async function execute(operation: Locator): Promise<object[]> {
  await operation.locator('.opblock-summary-control').click();
  await operation.getByRole('button', { name: 'Try it out' }).click();
  await operation.getByRole('button', { name: 'Execute' }).click();
  const answer = operation.locator(
    '.live-responses-table .response-col_description .highlight-code pre',
  );
  return JSON.parse((await answer.first().textContent()) ?? '');
}

/** Gives the page a token by its button «Authorize». */
async function authorize(page: Page): Promise<void> {
  const { authorization } = await bearer(SECRET, 'me');
  await page.getByRole('button', { name: 'Authorize' }).first().click();
  const dialog = page.locator('.dialog-ux');
  await dialog.locator('input').fill(authorization.replace('Bearer ', ''));
  await dialog.getByRole('button', { name: 'Apply credentials' }).click();
  await dialog.locator('.close-modal').click();
}

test('a person tries «list» and, with a token, «create» on /docs and sees the answers', {
  skip,
}, async (t) => {
  assert.ok(browser, `none of ${CHROMIUM.join(', ')} is installed`);
  await reset('put');
  const closed = { DATABASE_URL: database.url, JWT_SECRET: SECRET, AUTH: 'write' };
  const { url, stop } = await startReady(closed);
  t.after(() => stop());
  const quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync'];
  const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', ...quiet];
  const context = await chromium.launchPersistentContext(join(directory, 'browser'), {
    ...{ executablePath: browser, headless: true, args },
    viewport: { width: 1200, height: 800 },
  });
  try {
    const page = await context.newPage();
    const [requested, complaints]: [string[], string[]] = [[], []];
    context.on('request', (request) => requested.push(request.url()));
    page.on('console', (message) => {
      if (/error|warning/.test(message.type())) complaints.push(message.text());
    });
    page.on('pageerror', (error) => complaints.push(String(error)));
    await page.goto(`${url}/docs`);
    const list = page.locator('#operations-passengers-get_passengers');
    assert.deepEqual(await execute(list), [ROW]);
    const picture = fileURLToPath(new URL('../docs/docs.png', import.meta.url));
    await page.evaluate("document.querySelector('.responses-wrapper').scrollIntoView()");
    await page.screenshot({ path: process.env.SCREENSHOT ? picture : join(directory, 'docs.png') });
    await list.locator('.opblock-summary-control').click();
    await authorize(page);
    const created = await execute(page.locator('#operations-passengers-post_passengers'));
    assert.deepEqual(withKey(created), [ROW]);
    assert.deepEqual(complaints, []);
    for (const from of requested) assert.match(from, new RegExp(`^(${url}/|data:)`));
  } finally {
    await context.close();
  }
});
