/** Measurement in turns (A B C A B C), so that a disturbance of the machine meets all alike. */
import type { Sample } from './load.ts';
import { cpuOf, type Service, sum } from './services.ts';

/** One who does a work, and how one turn of it is driven. */
export type Entry = { name: string; on: Service; take: () => Promise<Sample> };

/** One value per turn. Latencies in ms; CPU time in µs per request, of `node` and of `postgres`. */
export type Turns = {
  rate: number[];
  p50: number[];
  p99: number[];
  node: number[];
  postgres: number[];
};

/** By work, by who did it; the first of each work is the service. */
export type Figures = Record<string, Record<string, Turns>>;

/** A first turn warms up and is not counted. `before` runs ahead of every turn. */
export async function takeTurns(
  entries: Entry[],
  turns: number,
  postgres: number,
  before: () => Promise<void>,
): Promise<Record<string, Turns>> {
  const taken = entries.map(({ name }) => [name, emptyTurns()] as const);
  for (let turn = 0; turn <= turns; turn += 1) {
    for (const [at, { on, take }] of entries.entries()) {
      await before();
      const [node, database] = [await cpuOfAll(on.pids), await cpuOf(postgres)];
      const { requests, seconds, p50, p99 } = await take();
      const of = taken[at]?.[1];
      if (turn === 0 || !of) continue;
      of.rate.push(short(requests / seconds));
      of.node.push(short(((await cpuOfAll(on.pids)) - node) / requests));
      of.postgres.push(short(((await cpuOf(postgres)) - database) / requests));
      if (p50 !== undefined) of.p50.push(short(p50));
      if (p99 !== undefined) of.p99.push(short(p99));
    }
  }
  return Object.fromEntries(taken);
}

export function emptyTurns(): Turns {
  return { rate: [], p50: [], p99: [], node: [], postgres: [] };
}

async function cpuOfAll(pids: number[]): Promise<number> {
  return sum(await Promise.all(pids.map(cpuOf)));
}

function short(value: number): number {
  return Number(value.toPrecision(4));
}

export function median(numbers: number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const [low = Number.NaN, high = low] = sorted.slice((sorted.length - 1) >> 1);
  return sorted.length % 2 === 1 ? low : (low + high) / 2;
}

/** Medians over the turns of one by the other: requests per second, CPU time of all processes. */
export function ratios(one: Turns, other: Turns): { rate: number; cpu: number } {
  const cpu = ({ node, postgres }: Turns) => node.map((us, turn) => us + (postgres[turn] ?? 0));
  const ratio = (of: (turns: Turns) => number[]) =>
    median(of(one).map((value, turn) => value / (of(other)[turn] ?? Number.NaN)));
  return { rate: ratio(({ rate }) => rate), cpu: ratio(cpu) };
}
