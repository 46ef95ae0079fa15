/**
 * The comparison with other services, or with another checkout; README.md has the method. A run of
 * all works renews results.json, results.svg and the figures of README.md.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { drawChart } from './chart.ts';
import { takeTurns } from './measure.ts';
import { measureMemory } from './memory.ts';
import { describeMachine, figureLines, type Results, type Run, record, toJson } from './report.ts';
import { openStage, type Stage } from './stage.ts';
import { DUELS, WORKS, type Work } from './works.ts';

const FULL = { seconds: 2, turns: 5, rows: 1_000_000 };
const QUICK = { seconds: 1, turns: 5, rows: 100_000 };

/** A work that fails is reported, and the others go on. */
async function measure(stage: Stage, works: string[]): Promise<Pick<Run, 'figures' | 'failures'>> {
  const { scale, postgres, reset, settle, tidy } = stage;
  const [figures, failures]: [Run['figures'], Run['failures']] = [{}, {}];
  for (const name of works) {
    const work = workOf(name);
    console.error(work.title);
    try {
      const before = () => settle().then(work.writes ? reset : undefined);
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
  const at = (file: string) => new URL(file, import.meta.url);
  const [major = ''] = process.versions.node.split('.');
  const kept: Results = JSON.parse(await readFile(at('results.json'), 'utf8'));
  const results = { ...kept, [major]: run };
  await writeFile(at('results.json'), toJson(results));
  await writeFile(at('results.svg'), drawChart(results));
  await writeFile(at('README.md'), record(await readFile(at('README.md'), 'utf8'), results));
}

async function main(): Promise<void> {
  const [busy] = loadavg();
  const boolean = { type: 'boolean', default: false } as const;
  const string = { type: 'string' } as const;
  const { values } = parseArgs({ options: { quick: boolean, works: string, against: string } });
  const { quick, works: chosen, against } = values;
  const complete = !(quick || against || chosen);
  const works = chosen?.split(',') ?? Object.keys(complete ? WORKS : DUELS);
  works.forEach(workOf); // an unknown name fails before anything is started
  const stage = await openStage(quick ? QUICK : FULL, against && resolve(against));
  const run: Run = {
    machine: await describeMachine(stage.few.sql, busy),
    ...(await measure(stage, works)),
  };
  if (complete) run.memory = await measureMemory(stage);
  await stage.close();
  console.log(figureLines(run).join('\n'));
  if (complete) await keep(run);
  if (Object.keys(run.failures).length > 0) process.exitCode = 1;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
await main();
