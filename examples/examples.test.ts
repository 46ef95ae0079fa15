/** The contract of each declaration, and the ways to serve another one than that of app.ts. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { decodeJwt } from 'jose';
import { main } from '../app.ts';
import { StartError } from '../lib/problem.ts';
import { checks } from '../test/contract.ts';
import { openTables, type Table } from '../test/deployment.ts';
import {
  bearer,
  inherited,
  lint,
  nodeArguments,
  openDatabase,
  startReady,
  type TestService,
  until,
} from '../test/harness.ts';

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const USER = 'user:0192f0c1-2f3a-7bcd-8123-000000000001';
const SHOP = { JWT_SECRET: SECRET, JWT_AUDIENCE: 'shop-example' };
const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** What is served, and what its environment needs besides; one line for each declaration. */
const DECLARATIONS: [file: string, environment: Record<string, string>][] = [
  ['app.ts', {}],
  ['examples/orders.ts', SHOP],
  ['examples/cities.ts', { BASE_PATH: '/ws/cities' }],
  ['examples/shop.ts', {}],
  ['README.md', {}],
];

const database = await openDatabase();
const directory = await mkdtemp(join(tmpdir(), 'examples test-'));
after(() => rm(directory, { recursive: true }));
await write('package.json', '{ "type": "module" }'); // without it tsx loads app.ts as CommonJS

/** Writes a file whose imports are relative to this directory. */
async function write(name: string, text: string): Promise<string> {
  const absolute = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
  const linked = text.replace(/'(\.\.\/[\w/]+\.ts)'/g, (_, path) => absolute(path));
  await writeFile(join(directory, name), linked);
  return join(directory, name);
}

/** The program to serve: the one in the README's text is written to a file. */
async function fileOf(file: string): Promise<string> {
  if (file !== 'README.md') return join(ROOT, file);
  const readme = await readFile(join(ROOT, file), 'utf8');
  const [shown = ''] = /^import .*'\.\..*\.ts';$[\s\S]*?^\}\);$/m.exec(readme) ?? [];
  return write('readme.ts', shown);
}

for (const [file, environment] of DECLARATIONS) {
  describe(`The declaration of ${file}`, () => {
    let service: TestService;
    let tables: Table[] = [];
    before(async () => {
      const RESOURCE = file === 'app.ts' ? '' : await fileOf(file);
      service = await startReady({ DATABASE_URL: database.url, RESOURCE, ...environment });
      const token = (await bearer(SECRET, USER, { aud: SHOP.JWT_AUDIENCE })).authorization;
      const url = service.url + (environment.BASE_PATH ?? '');
      tables = await openTables(url, token.replace('Bearer ', ''));
    });
    after(() => service?.stop());

    for (const { name, when, run } of checks) {
      test(name, async (t) => {
        const known = tables.filter(when);
        if (known.length === 0) t.skip('no table has what it is about');
        for (const table of known) await run(table);
      });
    }

    test('/openapi.json has no fault', async () => {
      const { json } = await service.get(`${environment.BASE_PATH ?? ''}/openapi.json`);
      assert.deepEqual(await lint(json), []);
    });
  });
}

describe('Another program', () => {
  const ORDERS = 'examples/orders.ts';
  const WAYS: [way: string, args: string[], environment: Record<string, string>][] = [
    ['by an argument', [ORDERS], { WEB_CONCURRENCY: '2' }],
    ['by RESOURCE', [], { RESOURCE: ORDERS, WEB_CONCURRENCY: '2' }],
    ['by an argument before RESOURCE', [ORDERS], { RESOURCE: 'examples/cities.ts' }],
  ];
  for (const [way, args, environment] of WAYS) {
    test(`is served ${way}, by ${environment.WEB_CONCURRENCY ?? 1} processes`, async (t) => {
      const all = { DATABASE_URL: database.url, ...SHOP, ...environment };
      const service = await startReady(all, { args, cwd: ROOT });
      t.after(() => service.stop());
      const listening = () => service.log.filter(({ msg }) => msg === 'listening').length;
      await until(() => listening() === Number(environment.WEB_CONCURRENCY ?? 1));
      for (let request = 0; request < 10; request += 1)
        assert.equal((await service.get('/orders', { connection: 'close' })).status, 401);
    });
  }

  test('adds endpoints to the tables of app.ts, before /:key', async (t) => {
    const file = await write(
      'stats.ts',
      `import { sql } from '../lib/sql.ts';
      export { default } from '../app.ts';
      export function endpoints(app, { pool, secured }) {
        app.get('/passengers/stats', secured, async (c) =>
          c.json(await pool.json(sql\`select min(survived::int) as least from titanic where false\`)));
        app.get('/passengers/fault', () => { throw new Error('not for a client'); });
      }`,
    );
    const service = await startReady({ DATABASE_URL: database.url, RESOURCE: file });
    t.after(() => service.stop());
    assert.deepEqual((await service.get('/passengers/stats')).json, [{ least: null }]);
    const { status, json } = await service.get('/passengers/fault');
    assert.deepEqual([status, json.code, json.status], [500, 'XX000', 500]);
    assert.equal((await service.get('/passengers/others')).json.code, '22P02');
    assert.equal((await service.get('/passengerlist')).status, 404); // an endpoint of app.ts alone
  });

  test('can be named before token', async () => {
    const command = [...nodeArguments, 'app.ts', ORDERS, 'token', '--sub', USER];
    const options = { env: { ...inherited(), ...SHOP }, cwd: ROOT };
    const { stdout } = await promisify(execFile)(process.execPath, command, options);
    const { sub, aud } = decodeJwt(stdout.trim());
    assert.deepEqual([sub, aud], [USER, SHOP.JWT_AUDIENCE]);
  });

  const BAD_NAME = "{ path: 'a', table: 'a', key: 'id', columns: { id: boolean() } }";
  const WRONG: [fault: string, text: string | undefined, message: RegExp][] = [
    ['does not exist', undefined, /cannot be imported: Cannot find module/],
    ['is not TypeScript', 'export default 1 +;', /cannot be imported: /],
    ['throws', "throw new Error('by itself')", /cannot be imported: by itself/],
    ['exports nothing', 'export const a = 1;', /no default export that resource\(\) made/],
    ['exports no resource', 'export default { path: 1 };', /no default export that resource\(\)/],
    ['exports no tables', 'export default [];', /no default export that resource\(\)/],
    [
      'declares a bad name',
      `export default resource(${BAD_NAME});`,
      /column "id" cannot be the key/,
    ],
  ];
  for (const [at, [fault, text, message]] of WRONG.entries()) {
    test(`does not start and names the file that ${fault}`, async () => {
      const file = join(directory, `wrong-${at}.ts`);
      const imports = "import { boolean, resource } from '../lib/columns.ts';\n";
      if (text) await write(`wrong-${at}.ts`, imports + text);
      await assert.rejects(main([file], {}), (error: Error) => {
        assert.ok(error instanceof StartError && error.message.startsWith(`RESOURCE ${file} `));
        return message.test(error.message);
      });
    });
  }

  for (const environment of [{}, { AUTH: 'none' }, { JWT_SECRET: SECRET, AUTH: 'write' }]) {
    test(`with an owner does not start by ${JSON.stringify(environment)}`, async () => {
      const message = /^AUTH=all with JWT_SECRET or JWKS_URL is required/;
      await assert.rejects(main([join(ROOT, ORDERS)], environment), { message });
    });
  }
});
