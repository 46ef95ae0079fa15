/** What the service takes before it serves and while it does: the parts of its start, its memory. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { inherited, nodeArguments } from '../test/harness.ts';
import { type Contestant, startOurs } from './contestants.ts';
import { FEW } from './database.ts';
import { drive } from './load.ts';
import { median, residentOf } from './measure.ts';
import type { Stage } from './stage.ts';
import { read } from './works.ts';

/** In ms. `ready`: from spawn until it listens; the parts by start.ts, each for itself. */
export type Start = {
  node: number;
  imports: number;
  connect: number;
  schema: number;
  ready: number;
};

/** MB resident: at rest, at most under load, at most while all of the large table is streamed. */
export type Memory = { idle: number; loaded: number; streamed: number; streamedPerSecond: number };

/** Medians of some starts, the database being up and the table there. */
export async function measureStart({ few, scale }: Stage): Promise<Start> {
  const starts: Start[] = [];
  for (let time = 0; time < scale.starts; time += 1) {
    const started = performance.now();
    const ours = await startOurs(few.url);
    const ready = performance.now() - started;
    await ours.stop();
    starts.push({ ...(await startParts(few.url)), ready });
  }
  const middle = (part: keyof Start) => median(starts.map((start) => start[part]));
  const [node, imports, connect] = [middle('node'), middle('imports'), middle('connect')];
  return { node, imports, connect, schema: middle('schema'), ready: middle('ready') };
}

async function startParts(url: string): Promise<Omit<Start, 'ready'>> {
  const file = fileURLToPath(new URL('start.ts', import.meta.url));
  const env = { ...inherited(), DATABASE_URL: url };
  const child = spawn(process.execPath, [...nodeArguments, file], { env });
  const ended = once(child, 'exit');
  const [output, errors] = await Promise.all([text(child.stdout), text(child.stderr)]);
  const [code] = await ended;
  if (code !== 0) throw new Error(errors);
  return JSON.parse(output);
}

/** Of services of their own, so that nothing before has left its mark. */
export async function measureMemory({ few, many, scale }: Stage): Promise<Memory> {
  const { idle, loaded } = await ofOne(few.url, async (ours) => {
    const idle = await residentOf(await ours.pids());
    const load = { ...read, url: ours.url, rows: FEW, seconds: 2 * scale.plan.seconds };
    return { idle, loaded: (await residentDuring(ours, drive(load))).resident };
  });
  const { resident, seconds } = await ofOne(many.url, async (ours) => {
    const from = performance.now();
    const { resident } = await residentDuring(ours, discard(`${ours.url}/passengerlist`));
    return { resident, seconds: (performance.now() - from) / 1000 };
  });
  return { idle, loaded, streamed: resident, streamedPerSecond: scale.rows / seconds };
}

async function ofOne<T>(url: string, look: (ours: Contestant) => Promise<T>): Promise<T> {
  const ours = await startOurs(url);
  try {
    return await look(ours);
  } finally {
    await ours.stop();
  }
}

/** The most MB that the contestant has while the work goes on. */
async function residentDuring(ours: Contestant, work: Promise<unknown>) {
  const pids = await ours.pids();
  let resident = 0;
  const look = async () => {
    resident = Math.max(resident, await residentOf(pids));
  };
  const timer = setInterval(() => void look(), 50);
  await work.finally(() => clearInterval(timer));
  return { resident };
}

/** Reads an answer to its end and keeps nothing. */
async function discard(url: string): Promise<void> {
  const { body, ok } = await fetch(url);
  for await (const _ of body ?? []);
  if (!ok) throw new Error(`${url} fails`);
}
