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
import * as report from './report.ts';
import { openStage, type Scale, type Stage } from './stage.ts';
import { DUELS, WORKS } from './works.ts';

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
async function measure(stage: Stage, works: string[]): Promise<Omit<report.Run, 'machine'>> {
  const run: Omit<report.Run, 'machine'> = { figures: {}, failures: {} };
  for (const name of works) {
    const work = WORKS[name];
    if (!work) continue;
    process.stderr.write(`${work.title}\n`);
    try {
      const entries = await work.entries(stage);
      const before = work.writes ? stage.reset : async () => {};
      run.figures[name] = await takeTurns(entries, stage.scale.turns, stage.postgres, before);
    } catch (error) {
      run.failures[name] = String(error).split('\n')[0] ?? '';
    }
    await stage.tidy();
  }
  return run;
}

async function keep(run: report.Run): Promise<void> {
  const file = (name: string) => new URL(name, import.meta.url);
  const [major = ''] = process.versions.node.split('.');
  const kept: report.Results = JSON.parse(await readFile(file('results.json'), 'utf8'));
  const results = { ...kept, [major]: run };
  await writeFile(file('results.json'), report.toJson(results));
  await writeFile(file('results.svg'), drawChart(results));
  const readme = await readFile(file('README.md'), 'utf8');
  await writeFile(file('README.md'), report.record(readme, results));
}

async function main(): Promise<void> {
  const { quick, against } = options;
  const all = Object.keys(quick || against || options.profile ? DUELS : WORKS);
  const works = options.works?.split(',') ?? all;
  const unknown = works.filter((work) => !WORKS[work]);
  if (unknown.length > 0) throw new Error(`${unknown} is none of ${Object.keys(WORKS)}`);
  const complete = !(quick || against || options.works);
  const scale = options.profile ? PROFILED : quick ? QUICK : FULL;
  const stage = await openStage(scale, against && resolve(against));
  const [shown] = await stage.few.sql`show server_version`;
  const machine = await report.describeMachine(shown?.server_version);
  if (options.profile) {
    for (const name of works) {
      const work = WORKS[name];
      if (work) console.log([work.title, ...(await profile(stage, work))].join('\n'));
    }
    return stage.close();
  }
  const run: report.Run = { machine, ...(await measure(stage, works)) };
  if (complete) run.memory = await measureMemory(stage);
  await stage.close();
  console.log(report.summary(run).join('\n'));
  if (complete) await keep(run);
  if (Object.keys(run.failures).length > 0) process.exitCode = 1;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
await main();
