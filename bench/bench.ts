/**
 * The comparison: `npm run bench`, five minutes, or `npm run bench -- --quick`, one. It starts all
 * that it needs and ends it; README.md beside it says what is compared, why, and how to read it.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { startDatabase } from '../test/harness.ts';
import { drawChart } from './chart.ts';
import { MANY } from './database.ts';
import { measureMemory, measureStart } from './footprint.ts';
import { loadTool } from './load.ts';
import type { Figures } from './measure.ts';
import * as report from './report.ts';
import { openStage, type Scale, type Stage } from './stage.ts';
import { judge } from './targets.ts';
import { tournament } from './tournament.ts';

const FULL: Scale = {
  plan: { rounds: 3, seconds: 2, warmUp: 1 },
  long: { seconds: 60, part: 5 },
  rows: MANY,
  starts: 3,
};
const QUICK: Scale = {
  plan: { rounds: 1, seconds: 1, warmUp: 0 },
  long: { seconds: 4, part: 1 },
  rows: MANY / 4,
  starts: 1,
};

/** All figures of one run. */
async function runAll(stage: Stage): Promise<Omit<report.Results, 'date' | 'quick' | 'machine'>> {
  const memory = await measureMemory(stage);
  const start = await measureStart(stage);
  const figures: Figures = {};
  for (const { work, take } of tournament(stage)) {
    process.stderr.write(`${work}\n`);
    const taken = await take(figures);
    if (taken) figures[work] = taken;
  }
  return { figures, verdicts: judge(figures), start, memory };
}

function print({ figures, verdicts, start, memory }: report.Results): void {
  const parts = [
    report.figureLines(figures),
    report.verdictLines(verdicts),
    report.footprintLines(start, memory),
  ];
  for (const lines of parts) console.log(`\n${lines.join('\n')}`);
}

/** The record of the last full run: the figures, the picture, and what README.md says of them. */
async function keep(results: report.Results): Promise<void> {
  const beside = (file: string) => new URL(file, import.meta.url);
  await writeFile(beside('results.json'), `${JSON.stringify(results, null, 2)}\n`);
  await writeFile(beside('results.svg'), drawChart(results));
  const readme = await readFile(beside('README.md'), 'utf8');
  await writeFile(beside('README.md'), report.record(readme, results));
}

const quick = process.argv.includes('--quick');
const started = performance.now();
const [busy = 0] = loadavg(); // before the run makes its own
const database = await startDatabase(''); // embedded, whatever DATABASE_URL says
try {
  const stage = await openStage(database, quick ? QUICK : FULL);
  try {
    const [shown] = await database.sql`show server_version`;
    const machine = report.describeMachine(shown?.server_version, await loadTool(), busy);
    const date = new Date().toISOString();
    const results: report.Results = { date, quick, machine, ...(await runAll(stage)) };
    print(results);
    if (!quick) await keep(results);
  } finally {
    await stage.close();
  }
} finally {
  await database.stop();
}
console.log(`\n${((performance.now() - started) / 1000).toFixed(0)} s`);
