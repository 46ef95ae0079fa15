/**
 * A typed client, unmodified: openapi-typescript makes types of the document, and a program that
 * gets a row by openapi-fetch, changes it and puts it back type-checks and runs.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openService } from './harness.ts';

const PACKAGES = ['openapi-fetch@0.17.0', 'openapi-typescript@7.13.0', 'typescript@5.9.3'];
const PROGRAM = `
import createClient from 'openapi-fetch';
import type { paths } from './api.ts';

const client = createClient<paths, 'application/json'>({ baseUrl: String(process.argv[2]) });
const body = {
  survived: true, passengerClass: 1, name: 'Ada', sex: 'female' as const, age: 33,
  siblingsOrSpousesAboard: 0, parentsOrChildrenAboard: 0, fare: 26.55,
};
const made = await client.POST('/passengers', { body });
const created = Array.isArray(made.data) ? made.data[0] : made.data;
if (!created?.uuid) throw new Error('no key');
const params = { path: { key: created.uuid } };
const { data: row } = await client.GET('/passengers/{key}', { params });
if (!row) throw new Error('no row');
const { data: replaced } = await client.PUT('/passengers/{key}', { params, body: { ...row, age: 34 } });
const listed = await client.GET('/passengers', { params: { query: { select: 'name,age' } } });
console.log(JSON.stringify([replaced?.age, listed.data?.[0]?.name]));
`;

const { service } = await openService();

/** A directory with the packages, installed once for this machine. */
function installed(): string {
  const home = join(tmpdir(), `passengers-typed-${process.getuid?.()}`);
  if (existsSync(join(home, 'done'))) return home;
  mkdirSync(home, { recursive: true });
  const quiet = ['--no-save', '--no-audit', '--no-fund', '--loglevel=error', '--legacy-peer-deps'];
  execFileSync('npm', ['install', ...quiet, '--prefix', home, ...PACKAGES]);
  writeFileSync(join(home, 'done'), '');
  return home;
}

test('openapi-fetch gets a row and puts it back, type-checked', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'passengers test-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const modules = join(installed(), 'node_modules');
  symlinkSync(modules, join(directory, 'node_modules'));
  const types = fileURLToPath(new URL('../node_modules/@types', import.meta.url));
  cpSync(
    fileURLToPath(new URL('../tsconfig.json', import.meta.url)),
    join(directory, 'tsconfig.json'),
  );
  writeFileSync(join(directory, 'package.json'), '{"type":"module"}');
  writeFileSync(join(directory, 'document.json'), (await service.get('/openapi.json')).text);
  writeFileSync(join(directory, 'program.ts'), PROGRAM);
  const run = (...args: string[]) => {
    const options = { cwd: directory, encoding: 'utf8' } as const;
    const { status, stdout, stderr } = spawnSync(process.execPath, args, options);
    assert.equal(status, 0, stdout + stderr);
    return stdout;
  };
  run(join(modules, 'openapi-typescript/bin/cli.js'), 'document.json', '-o', 'api.ts');
  const dom = ['--lib', 'es2024,dom,dom.iterable', '--typeRoots', types];
  run(join(modules, 'typescript/bin/tsc'), '-p', '.', ...dom);
  const output = run('--import', import.meta.resolve('tsx'), 'program.ts', service.url);
  assert.deepEqual(JSON.parse(output), [34, 'Ada']);
});
