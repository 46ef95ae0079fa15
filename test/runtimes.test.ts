/** The service on Deno and Bun, which npx brings in these versions: the contract, token, SIGTERM. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { decodeJwt } from 'jose';
import { checks } from './contract.ts';
import { openTables, type Table } from './deployment.ts';
import { inherited, openDatabase, startReady, type TestService } from './harness.ts';

const RUNTIMES: [name: string, printPath: string, flags: string[]][] = [
  ['deno@2.9.6', 'deno eval "console.log(Deno.execPath())"', ['run', '-A']],
  ['bun@1.4.5', 'bun -e "console.log(process.execPath)"', []],
];
const APP = fileURLToPath(new URL('../app.ts', import.meta.url));
const database = await openDatabase();

for (const [name, printPath, flags] of RUNTIMES) {
  const npx = ['--yes', `--package=${name}`, '-c', printPath];
  const found = spawnSync('npx', npx, { encoding: 'utf8', timeout: 300_000 });
  const lacks = found.status === 0 ? false : `npx cannot run ${name}: ${found.stderr.slice(-300)}`;
  const [program, skip] = [found.stdout.trim(), process.env.CI ? false : lacks];

  describe(`On ${name}`, { skip }, () => {
    let service: TestService;
    let tables: Table[] = [];
    before(async () => {
      assert.equal(lacks, false);
      const runtime = [program, ...flags];
      service = await startReady({ DATABASE_URL: database.url }, { runtime });
      tables = await openTables(service.url);
    });
    after(() => service?.stop('SIGKILL'));

    for (const check of checks)
      test(check.name, async (t) => {
        const known = tables.filter(check.when);
        if (known.length === 0) t.skip('no table has what it is about');
        for (const table of known) await check.run(table);
      });

    test('token prints a token', () => {
      const env = { ...inherited(), JWT_SECRET: 'x'.repeat(32) };
      const { stdout } = spawnSync(program, [...flags, APP, 'token', '--sub', 'me'], { env });
      assert.equal(decodeJwt(String(stdout).trim()).sub, 'me');
    });

    test('SIGTERM ends it with 0', async () => {
      assert.equal(await service.stop(), 0);
    });
  });
}
