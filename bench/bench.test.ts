/**
 * What of the bench cannot be noise: that those compared do the same work, and that figures become
 * the ratios, the table and the picture that they should.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { startDatabase, type TestDatabase } from '../test/harness.ts';
import { expectEqualAnswers } from './answers.ts';
import { drawChart } from './chart.ts';
import { type Contestant, POOL_SIZE, startFlask, startNodePeer, startOurs } from './contestants.ts';
import { FEW, fillTable } from './database.ts';
import { drive, fill, rawRequest } from './load.ts';
import { type Figure, measure, median, summary } from './measure.ts';
import { summarize } from './profile.ts';
import * as report from './report.ts';
import * as rows from './targets.ts';
import * as works from './works.ts';

suite('Peers', () => {
  let database: TestDatabase;
  let ours: Contestant;
  const peers: Contestant[] = [];
  const reset = () => fillTable(database.sql, FEW);

  before(async () => {
    database = await startDatabase();
    ours = await startOurs(database.url);
    await reset();
    const environment = { DATABASE_URL: database.url, POOL_SIZE };
    peers.push(await startNodePeer(rows.FASTIFY, 'fastify.js', environment));
    peers.push(await startNodePeer(rows.EXPRESS, 'express.js', environment));
  });
  after(async () => {
    for (const one of [...peers, ours]) await one.stop();
    await database.stop();
  });

  const { read, create, replace, lists, sameList, filter } = works;
  for (const [name, work] of Object.entries({ read, create, replace, lists, sameList, filter })) {
    test(`answer ${name} as the service does`, () =>
      expectEqualAnswers(work, ours, peers, work.writes ? reset : undefined));
  }

  test('of another answer are refused', async () => {
    const other = { ...lists, plain: sameList.request };
    await assert.rejects(expectEqualAnswers(other, ours, peers), /answers GET .* otherwise/);
  });

  test('that fail under load fail the run', async () => {
    const request = { method: 'GET', path: '/nothing' };
    const load = { request, url: ours.url, rows: FEW, connections: 2, seconds: 1 };
    await assert.rejects(drive(load), /answers to GET .*\/nothing failed/);
  });

  test('store as many rows as the load counted, each with a name of its own', async () => {
    await database.sql`truncate titanic`;
    const { perSecond } = await drive({ ...create, url: ours.url, rows: FEW, seconds: 1 });
    const [stored] = await database.sql`
      select count(*)::int as rows, count(distinct name)::int as names from titanic`;
    assert.equal(stored!.rows, stored!.names);
    assert.ok(stored!.rows >= perSecond * 0.5, `${stored!.rows} rows of ${perSecond}/s`);
  });

  test('in Python answer as the service does', async (t) => {
    const flask = await startFlask(database.url);
    if (!flask) return t.skip("Debian's python3-flask, gunicorn and python3-psycopg2 are missing");
    try {
      await expectEqualAnswers(read, ours, [flask], reset);
      await expectEqualAnswers(create, ours, [flask], reset);
    } finally {
      await flask.stop();
    }
  });

  test('are loaded by autocannon as by wrk', async () => {
    const file = fileURLToPath(new URL('cannon.js', import.meta.url));
    const load = { ...create, url: ours.url, rows: FEW, connections: 2, seconds: 1 };
    await database.sql`truncate titanic`;
    const { stdout } = await promisify(execFile)(process.execPath, [file, JSON.stringify(load)]);
    const { requests, failed } = JSON.parse(stdout);
    const [stored] = await database.sql`select count(*)::int as rows from titanic`;
    assert.equal(failed, 0);
    assert.ok(stored!.rows >= requests, `${stored!.rows} rows, ${requests} answers`);
  });
});

suite('Load', () => {
  test('a template has the same length for every row and count', () => {
    const template = '/passengers/<key>?offset=<counter:788>';
    assert.equal(fill(template, 10), '/passengers/00000000000a?offset=010');
    assert.equal(fill(template, 789), '/passengers/000000000315?offset=001');
  });

  test('a raw request says how long its filled body is', () => {
    const request = { method: 'POST', path: '/', body: '{"a":"<counter:100>"}', token: 't' };
    assert.equal(
      rawRequest('h', request),
      'POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 10\r\n' +
        'Authorization: Bearer t\r\n\r\n{"a":"<counter:100>"}',
    );
  });
});

const figure = (perSecond: number, p99 = 1): Figure => ({ perSecond, p50: 1, p99, spread: 0 });

suite('Arithmetic', () => {
  for (const [numbers, expected] of [
    [[3, 1, 2], 2],
    [[4, 1, 3, 2], 2.5],
    [[7], 7],
    [[], Number.NaN],
  ] as [number[], number][]) {
    test(`the median of [${numbers}] is ${expected}`, () =>
      assert.equal(median(numbers), expected));
  }

  test('a figure has the medians of its samples', () => {
    const sample = (perSecond: number, p99: number) => ({ perSecond, p50: 1, p99, failed: 0 });
    const { perSecond, p99, spread } = summary([sample(90, 5), sample(100, 9), sample(120, 1)]);
    assert.deepEqual({ perSecond, p99, spread }, { perSecond: 100, p99: 5, spread: 0.3 });
  });

  test('measuring goes in turns, and forgets the first', async () => {
    const order: string[] = [];
    const entry = (name: string) => ({
      name,
      take: async (seconds: number) => {
        order.push(name + seconds);
        return { perSecond: seconds, p50: 1, p99: 1, failed: 0 };
      },
    });
    const plan = { rounds: 2, seconds: 2, warmUp: 1 };
    const figures = await measure([entry('a'), entry('b')], plan);
    assert.deepEqual(order, ['a1', 'b1', 'a2', 'b2', 'a2', 'b2']);
    assert.equal(figures.a?.perSecond, 2);
  });

  const target = { work: 'w', ours: 'a', peer: 'b', limit: 2 } as const;
  for (const [at, ours, met] of [
    ['>=', 20, true],
    ['>=', 19.9, false],
    ['<=', 20, true],
    ['<=', 20.1, false],
  ] as ['>=' | '<=', number, boolean][]) {
    test(`${ours} by 10 is ${met ? '' : 'not '}${at} 2`, () => {
      const figures = { w: { a: figure(ours), b: figure(10) } };
      assert.equal(judge1(figures, { ...target, at }).met, met);
    });
  }

  test('what was not measured is neither met nor missed', () => {
    const verdict = judge1({ w: { a: figure(1) } }, { ...target, at: '>=' });
    assert.equal(verdict.met, undefined);
    assert.match(report.verdictLines([verdict]).at(-1)!, /not measured$/);
  });

  test('latencies are judged by p99', () => {
    const figures = { w: { a: figure(1, 3), b: figure(1, 4) } };
    assert.equal(judge1(figures, { ...target, at: '<=', of: 'p99' }).ratio, 0.75);
  });

  for (const [value, expected] of [
    [41_234, '41 200'],
    [999.6, '1 000'],
    [12.4, '12'],
  ] as [number, string][]) {
    test(`${value} is shown as ${expected}`, () => assert.equal(report.rounded(value), expected));
  }

  test('a profile is summed by function without what was idle', () => {
    const frame = (functionName: string, url = '') => ({ functionName, url, lineNumber: 0 });
    const nodes = [
      { id: 1, callFrame: frame('(idle)') },
      { id: 2, callFrame: frame('sql', 'file:///x/node_modules/postgres/src/index.js') },
      { id: 3, callFrame: frame('read', 'file:///x/app.ts') },
    ];
    const timeDeltas = [3_000_000, 30, 10, 500];
    const { functions } = summarize({ nodes, samples: [1, 2, 3, 1], timeDeltas });
    assert.deepEqual(functions, [
      ['sql postgres/index.js:1', 75],
      ['read app.ts:1', 25],
    ]);
  });
});

function judge1(figures: Record<string, Record<string, Figure>>, target: rows.Target) {
  return rows.judge(figures, [target])[0]!;
}

suite('Picture', () => {
  const all = { [rows.OURS]: figure(41_234), [rows.FASTIFY]: figure(19_000) };
  const machine = { cpu: 'A <&> B', cores: 2, node: 'v26', postgres: '18.4' };
  const svg = drawChart({
    date: '2026-01-02T03:04:05.678Z',
    quick: false,
    machine,
    figures: { [rows.READ]: all, [rows.CREATE]: all },
  } as unknown as report.Results);

  test('is well-formed XML', async () => {
    const text = svg.replace(/<style>.*?<\/style>/gs, '');
    const open: string[] = [];
    for (const [tag, end, name = '', closed] of text.matchAll(/<(\/?)([\w:]+)[^<>]*?(\/?)>/g)) {
      if (end) assert.equal(open.pop(), name, tag);
      else if (!closed) open.push(name);
    }
    assert.deepEqual(open, []);
    assert.match(svg, /A &lt;&amp;&gt; B/);
  });

  test('has every figure, and the date', () => {
    for (const text of ['41 200/s', '19 000/s', '2026-01-02', rows.OURS, rows.FASTIFY]) {
      assert.ok(svg.includes(text), text);
    }
  });

  test('has a light and a dark scheme and no colour besides', () => {
    assert.match(svg, /@media \(prefers-color-scheme:dark\)/);
    assert.match(svg, /fill="var\(--ours\)"/);
    const painted = svg.replace(/<style>.*?<\/style>/gs, '');
    assert.deepEqual(painted.match(/#[0-9a-f]{6}\b/g) ?? [], []);
  });

  test('loads nothing', () => {
    assert.doesNotMatch(svg.replaceAll(/xmlns(:\w+)?="[^"]*"/g, ''), /https?:|url\(|@import/);
  });
});

suite('Record', () => {
  const read = (file: string) => readFile(new URL(file, import.meta.url), 'utf8');

  test('README.md says what results.json says', async () => {
    const [readme, results] = [await read('README.md'), JSON.parse(await read('results.json'))];
    assert.equal(
      report.record(readme, results),
      readme,
      'run node bench/bench.ts, or record() anew',
    );
  });

  test('results.svg shows what results.json says', async () => {
    assert.equal(await read('results.svg'), drawChart(JSON.parse(await read('results.json'))));
  });

  test('results.json has been judged by the targets of today, in a full run', async () => {
    const { verdicts, figures, quick } = JSON.parse(await read('results.json')) as report.Results;
    assert.equal(quick, false);
    assert.deepEqual(verdicts, JSON.parse(JSON.stringify(rows.judge(figures))));
  });

  test('capacity is 70 % of a core by the CPU time of a request', () => {
    const one = { ...figure(1), ownCpu: 70, databaseCpu: 7 };
    const marks = ['machine', 'verdicts', 'footprint', 'capacity', 'figures'];
    const readme = marks.map((name) => `<!-- ${name} -->\n<!-- /${name} -->`).join('\n');
    const numbers = { node: 1, imports: 1, connect: 1, schema: 1, ready: 1 };
    const memory = { idle: 1, loaded: 1, streamed: 1, streamedPerSecond: 1 };
    const results = { date: '', machine: { busy: 0 }, verdicts: [], start: numbers, memory };
    const figures = { [rows.READ]: { [rows.OURS]: one } };
    const text = report.record(readme, { ...results, figures } as unknown as report.Results);
    assert.match(text, /\| 10 000\/s \| 100 000\/s \| 1 \+ 1 \| 10 \+ 1 \| 100 \+ 10 \|/);
  });
});
