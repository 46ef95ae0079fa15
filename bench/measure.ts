/** Measuring in turns: A B C A B C, so that what happens to the machine happens to all; medians. */
import { readFile } from 'node:fs/promises';
import { memoryOf } from '../test/harness.ts';
import type { Contestant } from './contestants.ts';
import { drive, type Load, type Sample } from './load.ts';

/** What is measured in turns: `take` loads it for so many seconds. */
export type Entry = { name: string; take: (seconds: number) => Promise<Sample & Partial<Cpu>> };

/** CPU time in µs per request: of the contestant's processes, of PostgreSQL's. */
export type Cpu = { ownCpu: number; databaseCpu: number };

/** Medians over the rounds; latencies in ms. `spread`: (most - least) / median of the rates. */
export type Figure = {
  perSecond: number;
  p50: number;
  p99?: number;
  spread: number;
  ownCpu?: number;
  databaseCpu?: number;
};

/** By kind of work, by name of the contestant. */
export type Figures = Record<string, Record<string, Figure>>;

export type Plan = { rounds: number; seconds: number; warmUp: number };

/** `before` runs ahead of every load. */
export async function measure(entries: Entry[], plan: Plan, before = async () => {}) {
  const samples = new Map(entries.map(({ name }) => [name, [] as (Sample & Partial<Cpu>)[]]));
  for (let round = plan.warmUp > 0 ? -1 : 0; round < plan.rounds; round += 1) {
    for (const { name, take } of entries) {
      await before();
      const sample = await take(round < 0 ? plan.warmUp : plan.seconds);
      if (round >= 0) samples.get(name)?.push(sample);
    }
  }
  return Object.fromEntries([...samples].map(([name, of]) => [name, summary(of)]));
}

/** The medians of some samples. */
export function summary(samples: (Sample & Partial<Cpu>)[]): Figure {
  const rates = samples.map(({ perSecond }) => perSecond);
  const perSecond = median(rates);
  const middle = (pick: (sample: Sample & Partial<Cpu>) => number | undefined) =>
    median(samples.flatMap((sample) => pick(sample) ?? []));
  const p99 = middle((sample) => sample.p99);
  const measured = samples.some(({ ownCpu }) => ownCpu !== undefined);
  return {
    perSecond,
    p50: middle(({ p50 }) => p50),
    ...(Number.isNaN(p99) ? {} : { p99 }),
    spread: (Math.max(...rates) - Math.min(...rates)) / perSecond,
    ...(measured && {
      ownCpu: middle(({ ownCpu }) => ownCpu),
      databaseCpu: middle(({ databaseCpu }) => databaseCpu),
    }),
  };
}

export function median(numbers: number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const [low = Number.NaN, high = low] = sorted.slice((sorted.length - 1) >> 1);
  return sorted.length % 2 === 1 ? low : (low + high) / 2;
}

/** An entry that loads a contestant and reads its CPU time and the database's around it. */
export function entryOf(
  contestant: Contestant,
  load: Omit<Load, 'url' | 'seconds'>,
  server: () => Promise<number[]>,
): Entry {
  const take = async (seconds: number) => {
    const clocks = [await startClock(contestant.pids), await startClock(server)];
    const sample = await drive({ ...load, url: contestant.url, seconds });
    const requests = sample.perSecond * seconds;
    const [own = 0, database = 0] = await Promise.all(clocks.map((stop) => stop()));
    return { ...sample, ownCpu: own / requests, databaseCpu: database / requests };
  };
  return { name: contestant.name, take };
}

const US_PER_TICK = 10_000; // Linux counts CPU time in hundredths of a second

/** What it returns tells the µs of CPU since, also of processes that were born since. */
async function startClock(pids: () => Promise<number[]>): Promise<() => Promise<number>> {
  const before = new Map<number, number>();
  for (const pid of await pids()) before.set(pid, await cpuOf(pid));
  return async () => {
    const since = (await pids()).map(async (pid) => (await cpuOf(pid)) - (before.get(pid) ?? 0));
    return (await Promise.all(since)).reduce((sum, us) => sum + us, 0);
  };
}

async function cpuOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) * US_PER_TICK;
}

/** The resident memory of processes in MB. */
export async function residentOf(pids: number[]): Promise<number> {
  const all = await Promise.all(pids.map(memoryOf));
  return all.reduce((sum, memory) => sum + (memory?.resident ?? 0), 0);
}
