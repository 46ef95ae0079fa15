/** Requests that arrive together become one call. */

/** How items are answered together. */
export type Grouping<I, O> = {
  /** Most items of one group. */
  most: number;
  /** Most groups in flight at once. */
  width: number;
  /** Items with the same key are never in one group. */
  keyOf?: (item: I) => unknown;
  /** An error for an item that must not run any more, else undefined. */
  refuse: (item: I) => unknown;
  /** Whether the error had no effect, so that each item may be tried alone. */
  isApart: (error: unknown) => boolean;
  /** Is called with the size of each group. */
  observe: (items: number) => void;
  /** Answers the items in their order; `since` is when the first of them arrived, in ms. */
  run: (items: I[], since: number) => Promise<O[]>;
};

type Waiter<I, O> = {
  item: I;
  since: number;
  resolve: (output: O) => void;
  reject: (error: unknown) => void;
};

/**
 * Answers items in groups. What arrives while `width` groups are in flight goes into the next one,
 * so every item is answered by a run that began after it arrived; a lone item does not wait.
 */
export function group<I, O>(grouping: Grouping<I, O>): (item: I) => Promise<O> {
  const { width } = grouping;
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
    if (due || running >= width || waiting.length === 0) return;
    due = true;
    setImmediate(start);
  };

  /** The usual case of little load, without a batch. */
  const runAlone = async (item: I): Promise<O> => {
    const refusal = grouping.refuse(item);
    if (refusal) throw refusal;
    running += 1;
    grouping.observe(1);
    try {
      return (await grouping.run([item], performance.now()))[0] as O;
    } finally {
      running -= 1;
      schedule();
    }
  };

  return (item) => {
    if (running === 0 && waiting.length === 0) return runAlone(item);
    return new Promise((resolve, reject) => {
      waiting.push({ item, since: performance.now(), resolve, reject });
      schedule();
    });
  };
}

/** Runs a batch; after an error without effect, runs each of its items alone. */
async function settle<I, O>(batch: Waiter<I, O>[], grouping: Grouping<I, O>): Promise<void> {
  const { observe, run, isApart } = grouping;
  observe(batch.length);
  const items = batch.map(({ item }) => item);
  try {
    const outputs = await run(items, batch[0]?.since ?? 0);
    for (const [at, waiter] of batch.entries()) waiter.resolve(outputs[at] as O);
  } catch (error) {
    const apart = batch.length > 1 && isApart(error);
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
  return async (key, item) => {
    const shared = groups.get(key) ?? { ask: group({ ...grouping, width: 1 }), asking: 0 };
    groups.set(key, shared);
    shared.asking += 1;
    try {
      return await shared.ask(item);
    } finally {
      shared.asking -= 1;
      if (shared.asking === 0) groups.delete(key);
    }
  };
}
