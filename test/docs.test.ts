/** The pages: their size, their links, what they repeat of the code, and the commands they show. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { connect, createApp, endpoints, passengers } from '../app.ts';
import { Config, readConfig } from '../lib/config.ts';
import { openLog } from '../lib/log.ts';
import { openService } from './harness.ts';

const { service } = await openService(); // first: tests that are declared after an await are lost
const ROOT = fileURLToPath(new URL('..', import.meta.url));
const read = (file: string) => readFileSync(join(ROOT, file), 'utf8');
const pages = ['.', '.github', 'bench', 'cloudbuild', 'docs'].flatMap((directory) =>
  readdirSync(join(ROOT, directory))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(directory, name)),
);

test('README.md has at most 1200 words, its Make it yours at most 60 lines', () => {
  const readme = read('README.md');
  const [, section = ''] = /^## Make it yours\n([\s\S]*?)^## /m.exec(readme) ?? [];
  assert.ok(readme.trim().split(/\s+/).length <= 1200);
  assert.ok(section !== '' && section.trim().split('\n').length <= 60);
});

for (const page of pages) {
  test(`the links of ${page} lead to files`, () => {
    const links = [...read(page).matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, path = '']) => path);
    const missing = links.filter((path) => !existsSync(join(ROOT, dirname(page), path)));
    assert.deepEqual(missing, []);
  });
}

describe('docs/configuration.md', () => {
  const rows = [...read('docs/configuration.md').matchAll(/^\| `([A-Z_]+)` \| (.*?) \|/gm)];
  const defaults: Record<string, unknown> = { ...readConfig({}), APP_VERSION: '' };

  test('has each variable of Config and no other', () => {
    const named = Object.keys(Config.shape).filter((name) => !/^(NODE_ENV|PG.*)$/.test(name));
    assert.deepEqual(rows.map(([, name]) => name).sort(), named.sort());
  });

  for (const [, name = '', shown = ''] of rows) {
    const value = String(defaults[name] ?? '');
    test(`has the default of ${name}`, () => {
      if (value === '') assert.doesNotMatch(shown, /^`/);
      else assert.equal(shown, `\`${value}\``);
    });
  }
});

test('docs/scaling.md has the capacity that follows from the first figures in bench/README.md', () => {
  const [figures, page] = [read('bench/README.md'), read('docs/scaling.md')];
  const timesOf = (work: string) => {
    const line = new RegExp(
      `^${work}\\n +passengers[ \\d]+\\(.*?\\) +([\\d.]+) .*?\\) +([\\d.]+) `,
      'm',
    );
    const [, service, database] = line.exec(figures) ?? [];
    return { service: Number(service), database: Number(database) }; // µs
  };
  const get = timesOf('GET by key, 64 connections');
  const list = timesOf('filter \\+ order.*');
  const post = timesOf('POST one row, 64 connections');
  const sum = (of: 'service' | 'database') => 0.7 * get[of] + 0.2 * list[of] + 0.1 * post[of];
  const sums = [sum('service'), sum('database')];
  const shown = [...page.matchAll(/^ .* = +(\d+) µs$/gm)].map(([, time]) => Number(time));
  assert.deepEqual(shown, sums.map(Math.round));
  const rows = [...page.matchAll(/^\| ([\d ]+) \| (\d+) \| (\d+) \| (\d+) \|/gm)];
  const cells = rows.map((row) => row.slice(1).map((cell) => Number(cell.replaceAll(' ', ''))));
  const cores = (rate: number, time: number) => Math.ceil((rate * time) / 0.7e6);
  const times = [...sums, 0.1 * post.database];
  const expected = [1e4, 1e5, 1e6].map((rate) => [rate, ...times.map((time) => cores(rate, time))]);
  assert.deepEqual(cells, expected);
});

test('docs/resources.md has each kind, option and member, and no other', () => {
  const page = read('docs/resources.md');
  const section = (title: string) => page.split(`\n## ${title}\n`)[1]?.split('\n## ')[0] ?? '';
  const all = (text: string, pattern: RegExp) =>
    [...text.matchAll(pattern)].map(([, one = '']) => one);
  const firsts = (text: string) => [
    ...new Set(all(text, /^\| (.*?) \| /gm).flatMap((cell) => all(cell, /`(\w+)/g))),
  ];
  const source = read('lib/columns.ts');
  const [, kinds = ''] = source.split('// --- Kinds');
  const made = all(kinds, /^export (?:const|function) (\w+).*?(?:= whole|\): Column)/gms);
  assert.deepEqual(firsts(section('Kinds')).sort(), made.sort());
  const [, options = ''] = /export type Options = \{(.*?)\n\}/s.exec(source) ?? [];
  assert.deepEqual(firsts(section('Options')), all(options, /^ {2}(\w+)\?/gm));
  const [, members = ''] = /^type Declaration = \{(.*?)\n\}/ms.exec(source) ?? [];
  assert.deepEqual(firsts(page.split('\n## ')[0] ?? ''), all(members, /^ {2}(\w+)\??:/gm));
});

test('docs/api.md has the routes of the application and no other', async () => {
  const config = readConfig({ DATABASE_URL: 'postgres://127.0.0.1:1/none' });
  const service = connect(config, { resources: [passengers], endpoints }, openLog('silent'));
  const routes = createApp(service).routes.map(({ method, path }) => `${method} ${path}`);
  await service.pool.end();
  const own = routes.filter((route) => !/^(ALL|OPTIONS) |\/rest\/v1\//.test(route));
  const [, section = ''] = /^## Routes\n([\s\S]*?)^## /m.exec(read('docs/api.md')) ?? [];
  const named = [...section.matchAll(/`([A-Z]+ \/[\w./:]*)(?:\?filter)?`/g)].map(([, one]) => one);
  assert.deepEqual([...new Set(named)].sort(), [...new Set(own)].sort());
});

const masked = (json: string) => json.replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, 'UUID');
describe('Commands', () => {
  before(async () => {
    const sample = read('examples/passengers.csv');
    await service.request('POST', '/passengers', sample, { 'content-type': 'text/csv' });
  });
  for (const page of ['docs/api.md', 'README.md']) {
    const shown = read(page).matchAll(/^ {4}\$ (curl|printf)(.*(?:\n {8}.*)*)\n {4}(.*)$/gm);
    for (const [, program, rest = '', answer = ''] of shown) {
      if (/passengers\/stats/.test(rest)) continue; // the endpoint that README adds
      test(`${page}: ${program}${rest.slice(0, 70)} answers what is shown`, () => {
        const command = `${program}${rest}`.replaceAll('http://127.0.0.1:8000', service.url);
        const { stdout } = spawnSync('bash', ['-c', command.replaceAll('curl', 'curl -s')]);
        assert.equal(masked(String(stdout)), masked(answer));
      });
    }
  }
});
