import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { group, share } from './group.ts';

type Item = { key: number; bad: boolean; left: boolean };
const ITEMS = fc.array(fc.record({ key: fc.nat(3), bad: fc.boolean(), left: fc.boolean() }), {
  maxLength: 40,
});
const defaults = { width: 1, refuse: () => undefined, isApart: () => false, observe: () => {} };

for (const [most, width] of [
  [1, 1],
  [2, 1],
  [5, 2],
  [64, 3],
] as const) {
  test(`group() of ${most}, ${width} in flight: in any order of events, each item gets its answer`, async () => {
    const property = fc.asyncProperty(ITEMS, fc.scheduler(), async (items, scheduler) => {
      let [version, running] = [0, 0];
      const ask = group<Item, { item: Item; seen: number }>({
        most,
        width,
        keyOf: ({ key }) => key,
        observe: (size) => assert.ok(size <= most),
        refuse: ({ left }) => left && new Error('left'),
        isApart: () => true,
        run: async (batch) => {
          const seen = version; // a statement sees what was there when it began
          running += 1;
          assert.ok(batch.length === 1 || running <= width);
          assert.equal(new Set(batch.map(({ key }) => key)).size, batch.length);
          await scheduler.schedule(Promise.resolve());
          running -= 1;
          if (batch.some(({ bad }) => bad)) throw new Error('bad');
          return batch.map((item) => ({ item, seen }));
        },
      });
      const asking = items.map(async (item) => {
        await scheduler.schedule(Promise.resolve());
        version += 1;
        const since = version;
        const answer = await ask(item).catch((error: Error) => error.message);
        if (item.left) return assert.equal(answer, 'left');
        if (item.bad) return assert.equal(answer, 'bad');
        assert.ok(typeof answer === 'object' && answer.item === item);
        assert.ok(answer.seen >= since, 'the run began before the item arrived');
      });
      await scheduler.waitFor(Promise.all(asking));
      assert.equal(running, 0);
    });
    await fc.assert(property, { numRuns: 100 });
  });
}

test('group() runs a lone item in the same turn of the event loop', () => {
  let runs = 0;
  const run = async (items: number[]) => {
    runs += 1;
    return items;
  };
  void group({ ...defaults, most: 9, run })(1);
  assert.equal(runs, 1);
});

test('group() fails all of a batch after an error that may have had an effect', async () => {
  const batches: number[][] = [];
  const run = async (items: number[]) => {
    batches.push(items);
    throw new Error('lost');
  };
  const ask = group({ ...defaults, most: 9, run });
  const asked = await Promise.allSettled([1, 2, 3, 4].map((item) => ask(item)));
  assert.deepEqual([...new Set(asked.map(({ status }) => status))], ['rejected']);
  assert.deepEqual(batches, [[1], [2, 3, 4]]);
});

test('share() answers equal items by one run that began after they arrived', async () => {
  let runs = 0;
  const run = async (items: string[]) => {
    runs += 1;
    const own = runs;
    await new Promise(setImmediate);
    return items.map((item) => `${item} ${own}`);
  };
  const ask = share<string, string>({ ...defaults, most: 9, run });
  const asked = ['a', 'a', 'b', 'a'].map((item) => ask(item, item));
  assert.deepEqual(await Promise.all(asked), ['a 1', 'a 3', 'b 2', 'a 3']);
  assert.equal(await ask('a', 'a'), 'a 4');
});
