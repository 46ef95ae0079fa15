/**
 * Tests of /openapi.json and /docs: what the document shows is sent, and what comes back compared.
 *
 *     SCREENSHOT=1 node --import tsx --test test/openapi.test.ts   makes test/docs.png anew
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';
import { createApp, passengers, readConfig, type Service } from '../app.ts';
import {
  startDatabase,
  startReady,
  startService,
  type TestDatabase,
  type TestService,
} from './harness.ts';

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];
const KEY = '0192f0c1-2f3a-7bcd-8123-456789abcdef';
const ROW = {
  uuid: KEY,
  survived: true,
  passengerClass: 1,
  name: 'Miss. Elisabeth Walton Allen',
  sex: 'female',
  age: 29,
  siblingsOrSpousesAboard: 0,
  parentsOrChildrenAboard: 0,
  fare: 211.3375,
};

/** As much of an OpenAPI document as is looked at here. */
type Media = { example?: unknown; examples?: Record<string, { value: unknown }> };
type Parameter = {
  in: 'path' | 'query' | 'header';
  name: string;
  example?: string;
  schema: { pattern?: string; examples?: string[]; enum?: string[] };
};
type Operation = {
  parameters: { $ref: string }[];
  requestBody?: { content: Record<string, Media> };
  responses: Record<string, { $ref?: string; content?: Record<string, Media> }>;
  security: object[];
};
type Api = {
  paths: Record<string, Record<string, Operation>>;
  components: {
    parameters: Record<string, Parameter>;
    schemas: Record<string, object>;
    securitySchemes: Record<string, { scheme: string }>;
  };
};

let directory: string;
let database: TestDatabase;
let service: TestService;
let api: Api;
let keyed: Api; // of a service that wants tokens

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'openapi test-'));
  database = await startDatabase();
  service = await startReady({ DATABASE_URL: database.url });
  api = (await service.get('/openapi.json')).json;
  const other = await startService({ DATABASE_URL: database.url, JWT_SECRET: 'x'.repeat(32) });
  keyed = (await other.get('/openapi.json')).json;
  await other.stop();
});
after(async () => {
  await service?.stop();
  await database?.stop();
  await rm(directory, { recursive: true });
});

/** Method, path, operation of all. */
function operations(): [string, string, Operation][] {
  return Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, one]): [string, string, Operation] => [method, path, one]),
  );
}

/** The table with one row, the example; without any where one is to be made. */
async function reset(method: string) {
  await database.sql`truncate titanic`;
  if (method === 'post') return;
  assert.equal((await service.request('PUT', `/passengers/${KEY}`, ROW)).status, 201);
}

test('the document names the routes of the app, each and no other', () => {
  const environment = { AUTH: 'none', DATABASE_URL: 'postgres://nowhere' };
  const config = readConfig(environment);
  const app = createApp({ config, resource: passengers, metrics: {} } as unknown as Service);
  const routed = app.routes.filter(({ method }) => METHODS.includes(method.toLowerCase()));
  const routes = routed.map(({ method, path }) => `${method} ${path}`);
  const told = operations().map(
    ([method, path]) => `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`,
  );
  assert.deepEqual(told.sort(), routes.sort());
  assert.ok(routes.includes('GET /rest/v1/passengers/:key'));
  const others = app.routes.filter((route) => !routed.includes(route));
  assert.deepEqual(
    others.map(({ method, path }) => `${method} ${path}`),
    ['OPTIONS /*'],
  );
});

test('the example of the declaration is a row of the declaration', () => {
  assert.deepEqual(passengers.example, ROW);
  assert.deepEqual(passengers.row.parse(passengers.example), ROW);
});

test('the schema of a new row is the declaration', () => {
  assert.deepEqual(api.components.schemas.NewRow, {
    type: 'object',
    properties: {
      uuid: { type: 'string' },
      survived: { type: 'boolean' },
      passengerClass: { type: 'integer', minimum: 1, maximum: 3 },
      name: { type: 'string', minLength: 1, maxLength: 150 },
      sex: { type: 'string', enum: ['male', 'female'] },
      age: { type: 'number', minimum: 0, maximum: 150 },
      siblingsOrSpousesAboard: { type: 'integer', minimum: 0, maximum: 20 },
      parentsOrChildrenAboard: { type: 'integer', minimum: 0, maximum: 20 },
      fare: { type: 'number', minimum: 0, maximum: Number.MAX_VALUE },
    },
    required: [
      ...['survived', 'passengerClass', 'name', 'sex', 'age', 'siblingsOrSpousesAboard'],
      ...['parentsOrChildrenAboard', 'fare'],
    ],
    additionalProperties: false,
  });
});

/** The path with its parameters filled in, and the headers, as the document shows them. */
function fill(path: string, { parameters }: Operation) {
  const url = new URL(path, 'http://x');
  const headers: Record<string, string> = {};
  for (const { $ref } of parameters) {
    const [, parameter = ''] = $ref.split('#/components/parameters/');
    const { in: place, name, example, schema } = api.components.parameters[parameter]!;
    const shown = example ?? schema.enum?.[0];
    if (shown === undefined) continue;
    if (place === 'path') url.href = url.href.replace(`%7B${name}%7D`, shown);
    if (place === 'query') url.searchParams.set(name, shown);
    if (place === 'header') headers[name] = shown;
  }
  return { target: url.pathname + url.search, headers };
}

/** Rows with the key of the example instead of one that the service made. */
function withKey(json: object): object {
  if (Array.isArray(json)) return json.map(withKey);
  return 'uuid' in json ? { ...json, uuid: KEY } : json;
}

test('every operation, sent as it is shown, gets the answer that is shown', async (t) => {
  for (const [method, path, operation] of operations()) {
    for (const [type, body] of Object.entries(operation.requestBody?.content ?? { '': {} })) {
      const shown: Record<string, Media> = {};
      for (const [name, { value }] of Object.entries(body.examples ?? {})) {
        shown[name] = { example: value };
      }
      for (const [name, { example }] of Object.entries(body.examples ? shown : { '': body })) {
        await t.test(`${method} ${path} ${type} ${name}`, async () => {
          await reset(method);
          const { target, headers } = fill(path, operation);
          if (type) headers['content-type'] = type;
          const answer = await service.request(method.toUpperCase(), target, example, headers);
          assert.equal(answer.status, method === 'post' ? 201 : 200, answer.text);
          if (type === 'text/csv') return assert.equal(answer.text, ''); // it is only counted
          const [media = ''] = (answer.headers.get('content-type') ?? '').split(';');
          const contents = operation.responses[answer.status]?.content ?? {};
          const content = contents[media] ?? contents[media.replace(/\/.*/, '/*')];
          assert.ok(content, media);
          if (content.example) assert.deepEqual(withKey(answer.json), content.example);
        });
      }
    }
  }
});

test('every filter takes the operators that it names, and no other', async (t) => {
  await reset('put');
  const { parameters } = api.components;
  const operators = /\((eq\|.*?)\)/.exec(parameters['column.name']?.schema.pattern ?? '')?.[1];
  assert.equal(operators?.split('|').length, 17);
  for (const [name, value] of Object.entries(ROW)) {
    await t.test(name, async () => {
      const { pattern = '', examples = [] } = parameters[`column.${name}`]!.schema;
      const values: Record<string, string> = { is: 'null', in: '()', fts: 'Allen' };
      for (const operator of operators!.split('|')) {
        const sent = `${operator}.${values[operator] ?? value}`;
        const { status } = await service.get(`/passengers?${new URLSearchParams([[name, sent]])}`);
        assert.equal(status, new RegExp(pattern).test(sent) ? 200 : 400, sent);
      }
      assert.equal(examples.length, 1);
      const shown = new URLSearchParams([[name, examples[0]!]]);
      assert.deepEqual((await service.get(`/passengers?${shown}`)).json, [ROW]);
      assert.equal((await service.get(`/passengers?${name}=near.x`)).status, 400);
    });
  }
});

test('every error is told by reference, and the token where one is needed', () => {
  for (const [, path, { responses, security }] of operations()) {
    for (const [status, { $ref }] of Object.entries(responses)) {
      if (/^[45]/.test(status)) assert.equal($ref, '#/components/responses/Problem');
    }
    assert.ok(responses['4XX'] && responses['5XX'], path);
    assert.deepEqual(security, []);
  }
  const { paths, components } = keyed;
  assert.deepEqual(paths['/passengers']?.get?.security, [{ bearer: [] }]);
  assert.deepEqual(paths['/docs']?.get?.security, []);
  assert.equal(components.securitySchemes.bearer?.scheme, 'bearer');
});

/** What the linter says of a document. */
async function lint(name: string, document: object): Promise<unknown> {
  const file = join(directory, `${name}.json`);
  await writeFile(file, JSON.stringify(document));
  const cli = fileURLToPath(import.meta.resolve('@redocly/cli/bin/cli.js'));
  const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  const args = [cli, 'lint', file, '--extends=recommended', '--format=json'];
  const run = promisify(execFile)(process.execPath, args, { env, cwd: directory });
  const { totals, problems } = JSON.parse((await run.catch((error) => error)).stdout);
  return { ...totals, problems: problems.map((one: object) => JSON.stringify(one)) };
}

test('a linter finds no error and no warning in the document', async () => {
  const clean = { errors: 0, warnings: 0, ignored: 0, problems: [] };
  assert.deepEqual(await lint('open', api), clean);
  assert.deepEqual(await lint('keyed', keyed), clean);
  const { errors } = (await lint('broken', { ...api, info: {} })) as { errors: number };
  assert.ok(errors > 0);
});

test('GET /docs/:file answers the files of the page, which may be kept, and no other', async () => {
  const page = await service.get('/docs');
  assert.match(
    page.headers.get('content-security-policy')!,
    /^default-src 'none'; script-src 'self'/,
  );
  for (const [name, type] of [
    ['swagger-ui.css', 'text/css; charset=utf-8'],
    ['swagger-ui-bundle.js', 'text/javascript; charset=utf-8'],
    ['start.js', 'text/javascript; charset=utf-8'],
  ]) {
    const { status, headers } = await service.get(`/docs/${name}`);
    assert.deepEqual([status, headers.get('content-type')], [200, type]);
    assert.equal(headers.get('cache-control'), 'public, max-age=86400');
  }
  for (const name of ['package.json', 'toString', '..%2Fapp.ts', '']) {
    assert.equal((await service.get(`/docs/${name}`)).status, 404, name);
  }
});

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const browser = CHROMIUM.find((path) => existsSync(path));
const skip = !browser && !process.env.CI ? `no ${CHROMIUM.join(', ')} here` : false;

test('a person tries «list» and «create» on /docs and sees the answers', { skip }, async () => {
  assert.ok(browser, `none of ${CHROMIUM.join(', ')} is installed`);
  await reset('put');
  const home = join(directory, 'browser');
  const quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync'];
  const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', ...quiet];
  const context = await chromium.launchPersistentContext(home, {
    ...{ executablePath: browser, headless: true, args },
    viewport: { width: 1200, height: 2000 },
  });
  try {
    const page = await context.newPage();
    const [requested, complaints]: [string[], string[]] = [[], []];
    context.on('request', (request) => requested.push(request.url()));
    page.on('console', (message) => {
      if (/error|warning/.test(message.type())) complaints.push(message.text());
    });
    page.on('pageerror', (error) => complaints.push(String(error)));
    await page.goto(`${service.url}/docs`);
    const list = page.locator('#operations-rows-get_passengers');
    await list.locator('.opblock-summary-control').click();
    await list.getByRole('button', { name: 'Try it out' }).click();
    await list.getByRole('button', { name: 'Execute' }).click();
    const answer = list.locator(
      '.live-responses-table .response-col_description .highlight-code pre',
    );
    assert.deepEqual(JSON.parse((await answer.first().textContent()) ?? ''), [ROW]);
    await list.locator('.opblock-summary-control').click();
    const create = page.locator('#operations-rows-post_passengers');
    await create.locator('.opblock-summary-control').click();
    await create.getByRole('button', { name: 'Try it out' }).click();
    await create.getByRole('button', { name: 'Execute' }).click();
    const made = create.locator(
      '.live-responses-table .response-col_description .highlight-code pre',
    );
    assert.deepEqual(withKey(JSON.parse((await made.first().textContent()) ?? '')), [ROW]);
    assert.equal(
      await create.locator('.live-responses-table .response-col_status').last().textContent(),
      '201',
    );
    const picture = fileURLToPath(new URL('docs.png', import.meta.url));
    await page.evaluate('scrollTo(0, 0)');
    await page.screenshot({ path: process.env.SCREENSHOT ? picture : join(directory, 'docs.png') });
    assert.deepEqual(complaints, []);
    assert.ok(requested.length >= 6);
    for (const url of requested) assert.match(url, new RegExp(`^(${service.url}/|data:)`));
  } finally {
    await context.close();
  }
  assert.equal((await database.sql`select from titanic`).length, 2);
});
