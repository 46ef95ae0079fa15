import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { suite, test } from 'node:test';
import { drawChart } from './chart.ts';
import { emptyTurns, median, ratios, takeTurns } from './measure.ts';
import { outcome, record } from './report.ts';
import type { Service } from './services.ts';
import type { Work } from './works.ts';

const read = (file: string) => readFileSync(new URL(file, import.meta.url), 'utf8');
const turns = (rate: number[], node: number[]) => {
  return { ...emptyTurns(), rate, node, postgres: node.map(() => 1) };
};

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
});
