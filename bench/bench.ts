/**
 * The comparison with other services and with another checkout; README.md beside it has the method.
 * A run of all works is kept in results.json, results.svg and README.md.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { drawChart } from './chart.ts';
import { takeTurns } from './measure.ts';
import { measureMemory } from './memory.ts';
import { profile } from './profile.ts';
import type { Results, Run } from './report.ts';
import * as report from './report.ts';
import { openStage, type Scale, type Stage } from './stage.ts';
import { DUELS, WORKS, type Work } from './works.ts';

const FULL: Scale = { seconds: 2, turns: 5, rows: 1_000_000 };
const QUICK: Scale = { seconds: 1, turns: 5, rows: 100_000 };
const PROFILED: Scale = { ...QUICK, seconds: 10 };

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    works: { type: 'string' },
    against: { type: 'string' },
    profile: { type: 'boolean', default: false },
  },
});

/** A work that fails is reported, and the others go on. */
async function measure(stage: Stage, works: string[]): Promise<Pick<Run, 'figures' | 'failures'>> {
  const { scale, postgres, reset, tidy } = stage;
  const [figures, failures]: [Run['figures'], Run['failures']] = [{}, {}];
  for (const name of works) {
    const work = workOf(name);
    process.stderr.write(`${work.title}\n`);
    try {
      const before = work.writes ? reset : async () => {};
      figures[name] = await takeTurns(await work.entries(stage), scale.turns, postgres, before);
    } catch (error) {
      [failures[name] = ''] = String(error).split('\n');
    }
    await tidy();
  }
  return { figures, failures };
}

function workOf(name: string): Work {
  const work = WORKS[name];
  if (work) return work;
  throw new Error(`there is no work "${name}", but ${Object.keys(WORKS).join(', ')}`);
}

async function keep(run: Run): Promise<void> {
  const file = (name: string) => new URL(name, import.meta.url);
  const [major = ''] = process.versions.node.split('.');
  const kept: Results = JSON.parse(await readFile(file('results.json'), 'utf8'));
  const results = { ...kept, [major]: run };
  await writeFile(file('results.json'), report.toJson(results));
  await writeFile(file('results.svg'), drawChart(results));
  const readme = await readFile(file('README.md'), 'utf8');
  await writeFile(file('README.md'), report.record(readme, results));
}

async function main(): Promise<void> {
  const { quick, against } = options;
  const complete = !(quick || against || options.works || options.profile);
  const works = options.works?.split(',') ?? Object.keys(complete ? WORKS : DUELS);
  works.forEach(workOf); // an unknown name fails before anything is started
  const scale = options.profile ? PROFILED : quick ? QUICK : FULL;
  const stage = await openStage(scale, against && resolve(against));
  if (options.profile) {
    for (const work of works.map(workOf))
      console.log([work.title, ...(await profile(stage, work))].join('\n'));
    return stage.close();
  }
  const [shown] = await stage.few.sql`show server_version`;
  const machine = await report.describeMachine(shown?.server_version);
  const run: Run = { machine, ...(await measure(stage, works)) };
  if (complete) run.memory = await measureMemory(stage);
  await stage.close();
  console.log(report.summary(run).join('\n'));
  if (complete) await keep(run);
  if (Object.keys(run.failures).length > 0) process.exitCode = 1;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
await main();
