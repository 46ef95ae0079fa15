/** Requests that arrive together become one call. */

/** How items are answered together: at most `most` in a group, at most `width` groups in flight. */
export type Grouping<I, O> = {
  most: number;
  width: number;
  /** Items with the same key are never in one group. */
  keyOf?: (item: I) => unknown;
  /** An error for an item that must not run any more, else undefined. */
  refuse: (item: I) => unknown;
  /** Whether the error had no effect, so that each item may be tried alone. */
  isApart: (error: unknown) => boolean;
  /** Is called with the size of each group. */
  observe: (items: number) => void;
  /** Answers the items in their order. */
  run: (items: I[]) => Promise<O[]>;
};

type Waiter<I, O> = {
  item: I;
  resolve: (output: O) => void;
  reject: (error: unknown) => void;
};

/**
 * Answers items in groups. What arrives while `width` groups are in flight goes into the next one,
 * so every item is answered by a run that began after it arrived; a lone item does not wait.
 */
export function group<I, O>(grouping: Grouping<I, O>): (item: I) => Promise<O> {
  const waiting: Waiter<I, O>[] = [];
  let [running, due] = [0, false];

  const start = async (): Promise<void> => {
    const batch = takeBatch(waiting, grouping);
    due = false;
    running += 1;
    schedule(); // for more items than one group takes
    if (batch.length > 0) await settle(batch, grouping);
    running -= 1;
    schedule();
  };

  /** A group waits for what else this turn of the event loop brings. */
  const schedule = (): void => {
    if (due || running >= grouping.width || waiting.length === 0) return;
    due = true;
    setImmediate(start);
  };

  return (item) =>
    new Promise((resolve, reject) => {
      waiting.push({ item, resolve, reject });
      if (running === 0 && waiting.length === 1) void start();
      else schedule();
    });
}

/** Runs a batch; after an error without effect, runs each of its items alone. */
async function settle<I, O>(batch: Waiter<I, O>[], grouping: Grouping<I, O>): Promise<void> {
  grouping.observe(batch.length);
  const items = batch.map(({ item }) => item);
  try {
    const outputs = await grouping.run(items);
    for (const [at, waiter] of batch.entries()) waiter.resolve(outputs[at] as O);
  } catch (error) {
    const apart = batch.length > 1 && grouping.isApart(error);
    if (apart) await Promise.all(batch.map((waiter) => settle([waiter], grouping)));
    else for (const waiter of batch) waiter.reject(error);
  }
}

/** Takes the oldest waiters, one for each key; the others keep their order. */
function takeBatch<I, O>(waiting: Waiter<I, O>[], grouping: Grouping<I, O>): Waiter<I, O>[] {
  const batch = new Map<unknown, Waiter<I, O>>();
  for (const waiter of waiting.splice(0)) {
    const key = grouping.keyOf?.(waiter.item) ?? waiter;
    const refusal = grouping.refuse(waiter.item);
    if (refusal) waiter.reject(refusal);
    else if (batch.size < grouping.most && !batch.has(key)) batch.set(key, waiter);
    else waiting.push(waiter);
  }
  return [...batch.values()];
}

/** Equal items that arrive while an answer is in flight all get the next one, which is one run. */
export function share<I, O>(grouping: Grouping<I, O>): (key: string, item: I) => Promise<O> {
  const groups = new Map<string, { ask: (item: I) => Promise<O>; asking: number }>();
  return (key, item) => {
    const shared = groups.get(key) ?? { ask: group({ ...grouping, width: 1 }), asking: 0 };
    groups.set(key, shared);
    shared.asking += 1;
    return shared.ask(item).finally(() => {
      shared.asking -= 1;
      if (shared.asking === 0) groups.delete(key);
    });
  };
}
