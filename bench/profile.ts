/**
 * Where the service spends its time: `node bench/profile.ts [work …]` prints the functions with the
 * most time of their own, for each kind of work on a process of its own.
 */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startDatabase } from '../test/harness.ts';
import { startOurs } from './contestants.ts';
import { FEW, fillTable } from './database.ts';
import { drive } from './load.ts';
import { create, filter, lists, read, readAlone, replace, sameList, type Work } from './works.ts';

const WORKS: Record<string, Work> = {
  ...{ read, readAlone, create, replace },
  ...{ lists, sameList, filter },
};
const SECONDS = 10;
const START_US = 2_000_000; // what start and warming take is none of the work's
const MOST = 15;

type Frame = { functionName: string; url: string; lineNumber: number };
type Profile = {
  nodes: { id: number; callFrame: Frame }[];
  samples: number[];
  timeDeltas: number[];
};

/** Percents of the time of their own, by function and by package, the busiest first. */
export function summarize({ nodes, samples, timeDeltas }: Profile) {
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, callFrame]));
  const [functions, packages] = [new Map<string, number>(), new Map<string, number>()];
  const add = (to: Map<string, number>, name: string, us: number) =>
    to.set(name, (to.get(name) ?? 0) + us);
  let now = 0;
  for (const [at, id] of samples.entries()) {
    const { functionName, url, lineNumber } = frames.get(id) as Frame;
    const us = timeDeltas[at] ?? 0;
    now += us;
    if (functionName === '(idle)' || now < START_US) continue;
    const [home, file] = placeOf(url);
    add(functions, `${functionName || '(anonymous)'} ${file}:${lineNumber + 1}`, us);
    add(packages, url ? home : functionName, us);
  }
  const total = [...packages.values()].reduce((sum, us) => sum + us, 0);
  const percents = (of: Map<string, number>) =>
    [...of].sort((a, b) => b[1] - a[1]).map(([name, us]) => [name, (us / total) * 100] as const);
  return { functions: percents(functions), packages: percents(packages) };
}

/** The package or `node`, and the file. */
function placeOf(url: string): [home: string, file: string] {
  const file = url.split('/').at(-1) ?? '';
  const [, inPackage] = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(url) ?? [];
  if (inPackage) return [inPackage, `${inPackage}/${file}`];
  return url.startsWith('node:') ? ['node', url] : [file, file];
}

async function profile(work: Work, url: string): Promise<Profile> {
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  try {
    const ours = await startOurs(url, 'passengers', {
      NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${directory}`,
    });
    const load = drive({ ...work, url: ours.url, rows: FEW, seconds: SECONDS });
    const { perSecond } = await load.finally(() => ours.stop()); // its end writes the profile
    console.log(`${Math.round(perSecond)}/s under the profiler`);
    const [file = ''] = await readdir(directory);
    return JSON.parse(await readFile(join(directory, file), 'utf8'));
  } finally {
    await rm(directory, { recursive: true });
  }
}

if (import.meta.main) {
  const database = await startDatabase();
  try {
    await (await startOurs(database.url)).stop(); // makes the table
    const names = process.argv.slice(2);
    for (const name of names.length > 0 ? names : Object.keys(WORKS)) {
      const work = WORKS[name];
      if (!work) throw new Error(`no work ${name}; there is ${Object.keys(WORKS).join(', ')}`);
      await fillTable(database.sql, FEW);
      console.log(`\n## ${name}`);
      const { functions, packages } = summarize(await profile(work, database.url));
      for (const [of, percent] of packages.slice(0, MOST)) console.log(percent.toFixed(1), of);
      console.log('');
      for (const [of, percent] of functions.slice(0, MOST)) console.log(percent.toFixed(1), of);
    }
  } finally {
    await database.stop();
  }
}
