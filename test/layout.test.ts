/** What the source text must be like: sizes and imports. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { inherited, nodeArguments } from './harness.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const read = (file: string) => readFileSync(join(ROOT, file), 'utf8');
const countLines = (files: string[]) =>
  files.reduce((sum, file) => sum + read(file).split('\n').length - 1, 0);

const directories = readdirSync(ROOT, { withFileTypes: true }).filter((one) => one.isDirectory());
const all = ['', ...directories.map(({ name }) => name)]
  .flatMap((name) => readdirSync(join(ROOT, name)).map((file) => join(name, file)))
  .filter((file) => /^(?!node_modules).*\.ts$/.test(file));
const tests = all.filter((file) => /\.test\.ts$|^test\//.test(file));
const library = all.filter((file) => /^lib\//.test(file) && !tests.includes(file));
const program = ['app.ts', ...library];

const sizes: [what: string, files: string[], most: number][] = [
  ['app.ts', ['app.ts'], 500],
  ['app.ts and lib/', program, 5_210],
  ['the tests and their helpers', tests, 12_730],
  ...library.map((file): [string, string[], number] => [file, [file], 450]),
];
for (const [what, files, most] of sizes) {
  test(`${what}: at most ${most} lines`, () => {
    const lines = countLines(files);
    assert.ok(lines <= most, `${lines} lines`);
  });
}

/** The functions of a formatted file with their own lines, without those of functions in them. */
function functionsIn(file: string): { name: string; lines: number }[] {
  const found: { name: string; indent: string; lines: number }[] = [];
  const open: typeof found = [];
  let opening = ''; // the last line that ends with "(": where a signature of several lines begins
  for (const line of read(file).split('\n')) {
    const [indent = ''] = /^ */.exec(line) ?? [];
    if (/\($/.test(line)) opening = line;
    const head = /^ *\)/.test(line) ? opening : line;
    const isControl = /^ *(\} )?(if|else|for|while|switch|try|catch|do)\b/.test(head);
    const isFunction = /(=>|\)|\)(: .+)?) \{$/.test(line) && !isControl;
    if (isFunction) open.push({ name: head.trim(), indent, lines: 0 });
    const current = open.at(-1);
    if (current && !/^ *(\/\/|\/?\*|$)/.test(line)) current.lines += 1; // a comment is no code
    if (current && !isFunction && line.startsWith(`${current.indent}}`))
      found.push(...open.splice(-1));
  }
  return found;
}

for (const file of program) {
  test(`${file}: no function has more than 40 lines`, () => {
    const functions = functionsIn(file);
    assert.ok(functions.length > 0 || countLines([file]) < 20, 'functions are found');
    const long = functions.filter(({ lines }) => lines > 40);
    assert.deepEqual(long, []);
  });
}

describe('Imports', () => {
  const IMPORT = /^(?:import|export|\}) .*from '(.+)'|^import '(.+)'|\bimport\('(.+)'\)/gm;
  const importsOf = (file: string) =>
    [...read(file).matchAll(IMPORT)].map(([, from, bare, dynamic]) => {
      const name = from ?? bare ?? dynamic ?? '';
      return name.startsWith('.') ? join(dirname(file), name) : name;
    });
  const graph = new Map(program.map((file) => [file, importsOf(file)]));

  test('are found', () => {
    assert.ok(graph.get('app.ts')?.includes('lib/pool.ts'));
    assert.ok(graph.get('lib/sample.ts')?.includes('lib/embedded.ts')); // by import()
  });

  for (const file of program) {
    test(`of ${file} make no circle`, () => {
      const reached = new Set<string>();
      const visit = (from: string) => {
        for (const to of graph.get(from) ?? []) {
          if (reached.has(to)) continue;
          reached.add(to);
          visit(to);
        }
      };
      visit(file);
      assert.equal(reached.has(file), false);
    });
  }

  const owners: [pattern: RegExp, files: string[]][] = [
    [/^app\.ts$/, []],
    [/(^|\/)(test|bench|cloudbuild|examples)\//, []],
    [/^hono(\/|$)/, ['app.ts', 'lib/http.ts']],
    [/^@hono\/node-server(\/|$)/, ['lib/http.ts', 'lib/server.ts']],
  ];
  for (const [pattern, files] of owners) {
    test(`of ${pattern} are in ${files.join(' and ') || 'no file'}`, () => {
      const found = [...graph].filter(([, names]) => names.some((name) => pattern.test(name)));
      assert.deepEqual(found.map(([file]) => file).sort(), files);
    });
  }

  test('do nothing: no timer, socket or process is open afterwards', () => {
    const url = JSON.stringify(new URL('../app.ts', import.meta.url).href);
    const active = 'process.getActiveResourcesInfo().filter((one) => !/Pipe|TTY|File/.test(one))';
    const script = `await import(${url}); console.log(JSON.stringify(${active}))`;
    const args = [...nodeArguments, '--input-type=module', '-e', script];
    const { stdout } = spawnSync(process.execPath, args, { encoding: 'utf8', env: inherited() });
    assert.equal(stdout.trim(), '[]');
  });
});

for (const file of tests.filter((name) => name.endsWith('.test.ts'))) {
  test(`${file} awaits nothing between its tests, which --test-force-exit would lose`, () => {
    const [, ...after] = read(file).split(/^(?=(?:test|describe)\()/m);
    assert.doesNotMatch(after.join(''), /^(?:const|let|await|for)\b.*\bawait\b/m);
  });
}

test('process.env is read in one place', () => {
  const found = program.flatMap((file) => read(file).match(/process\.env\b/g) ?? []);
  assert.equal(found.length, 1);
});

test('lib/ knows no passenger', () => {
  const found = library.filter((file) => /passenger|titanic/i.test(read(file)));
  assert.deepEqual(found, []);
});

for (const file of ['package-lock.json', 'bench/package-lock.json']) {
  test(`${file} names no registry`, () => assert.doesNotMatch(read(file), /"resolved"/));
}
