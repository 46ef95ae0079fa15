import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { suite, test } from 'node:test';
import { drawChart } from './chart.ts';
import { fill, rawRequest } from './load.ts';
import { emptyTurns, median, ratios, takeTurns } from './measure.ts';
import { outcome, record } from './report.ts';
import { cpuOf, nodeArguments, type Service } from './services.ts';
import type { Work } from './works.ts';

const read = (file: string) => readFileSync(new URL(file, import.meta.url), 'utf8');
const turns = (rate: number[], node: number[]) => {
  return { ...emptyTurns(), rate, node, postgres: node.map(() => 1) };
};

suite('Load', () => {
  test('a filled template has one length for every row and count', () => {
    const template = '/passengers/<key>?offset=<counter:788>';
    assert.equal(fill(template, 10), '/passengers/00000000000a?offset=010');
    assert.equal(fill(template, 789), '/passengers/000000000315?offset=001');
  });

  test('a raw request has the length of its filled body', () => {
    assert.equal(
      rawRequest('h', { method: 'POST', path: '/', body: '{"a":"<counter:100>"}' }),
      'POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n' +
        '{"a":"<counter:100>"}',
    );
  });

  for (const [stripsTypes, expected] of [
    [true, '--max-semi-space-size=16 app.ts'],
    [false, '--max-semi-space-size=16 --import tsx app.ts'],
  ] as const) {
    test(`the service starts as ${expected}`, () => {
      const script = 'exec node --max-semi-space-size=16 --import tsx app.ts';
      assert.equal(nodeArguments(script, stripsTypes).join(' '), expected);
    });
  }
});

suite('Arithmetic', () => {
  for (const [numbers, expected] of [
    [[3, 1, 2], 2],
    [[4, 1, 3, 2], 2.5],
    [[], Number.NaN],
  ] as [number[], number][]) {
    test(`the median of [${numbers}] is ${expected}`, () =>
      assert.equal(median(numbers), expected));
  }

  test('a ratio is the median of the ratios of turns; CPU is that of both sides', () => {
    const of = ratios(turns([10, 20, 90], [1, 3, 5]), turns([10, 10, 10], [3, 3, 2]));
    assert.deepEqual(of, { rate: 2, cpu: 1 });
  });

  test('turns alternate, and the first is not counted', async () => {
    const order: string[] = [];
    const entry = (name: string) => {
      const take = async () => ({ requests: order.push(name), seconds: 1 });
      return { name, on: { pids: [] as number[] } as Service, take };
    };
    const taken = await takeTurns([entry('a'), entry('b')], 2, 0, async () => {});
    assert.equal(order.join(''), 'ababab');
    assert.deepEqual(taken.b?.rate, [4, 6]);
  });

  test('CPU time includes that of ended children', async () => {
    const before = await cpuOf(process.pid);
    execFileSync(process.execPath, ['-e', 'while (process.cpuUsage().user < 200_000);']);
    assert.ok((await cpuOf(process.pid)) - before > 190_000);
  });
});

suite('Report', () => {
  for (const [expected, rate, failure] of [
    ['0.60 · 1.00', 6, undefined],
    ['**0.50 missed** · 1.00', 5, undefined],
    ['**failed**', undefined, 'status 503'],
    ['not measured', undefined, undefined],
  ] as const) {
    test(`a target of 0.6 shows ${expected}`, () => {
      const figures = rate && { a: turns([rate], [1]), b: turns([10], [1]) };
      assert.equal(outcome({ target: { rate: 0.6 } } as Work, figures, failure), expected);
    });
  }

  test('README.md and results.svg show results.json', () => {
    const results = JSON.parse(read('results.json'));
    assert.equal(record(read('README.md'), results), read('README.md'));
    assert.equal(drawChart(results), read('results.svg'));
  });

  test('package-lock.json names no registry', () => {
    assert.doesNotMatch(read('package-lock.json'), /"resolved"/);
  });
});
