/** Where the service spends its time: the functions with the largest own share, for one kind of work. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Stage } from './stage.ts';
import type { Work } from './works.ts';

type Frame = { functionName: string; url: string; lineNumber: number };
type Profile = {
  nodes: { id: number; callFrame: Frame }[];
  samples: number[];
  timeDeltas: number[];
};

const START_US = 2_000_000; // the start and its compilation are left out
const MOST = 30;

/** Percent of the busy time by function, the largest first. */
export function ownTimes({
  nodes,
  samples,
  timeDeltas,
}: Profile): [name: string, percent: number][] {
  const names = new Map(nodes.map(({ id, callFrame }) => [id, nameOf(callFrame)]));
  const times = new Map<string, number>();
  let now = 0;
  let total = 0;
  for (const [at, id] of samples.entries()) {
    const us = timeDeltas[at] ?? 0;
    const name = names.get(id) ?? '';
    now += us;
    if (name.startsWith('(idle)') || now < START_US) continue;
    total += us;
    times.set(name, (times.get(name) ?? 0) + us);
  }
  const percents = [...times].map(([name, us]): [string, number] => [name, (us / total) * 100]);
  return percents.sort(([, a], [, b]) => b - a);
}

function nameOf({ functionName, url, lineNumber }: Frame): string {
  const place = url.split(/\/node_modules\/|\/(?=[^/]+$)/).at(-1);
  return `${functionName || '(anonymous)'} ${place}:${lineNumber + 1}`;
}

/** Loads a service of its own under Node's profiler, which writes when the process ends. */
export async function profile(stage: Stage, work: Work): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  try {
    const flags = ['--cpu-prof', `--cpu-prof-dir=${directory}`];
    const ours = await stage.guest(stage.few.url, undefined, { flags });
    const [entry] = await work.entries({ ...stage, ours, peers: [] });
    await entry?.take();
    await stage.tidy();
    const [file = ''] = await readdir(directory);
    const times = ownTimes(JSON.parse(await readFile(join(directory, file), 'utf8')));
    return times
      .slice(0, MOST)
      .map(([name, percent]) => `${percent.toFixed(1).padStart(5)} ${name}`);
  } finally {
    await rm(directory, { recursive: true });
  }
}
