/** Figures as text: the table on stdout, and what results.json says of the machine. */
import { cpus, release, totalmem } from 'node:os';
import type { Memory, Start } from './footprint.ts';
import type { Figures } from './measure.ts';
import type { Verdict } from './targets.ts';
import * as rows from './targets.ts';

export type Machine = {
  cpu: string;
  cores: number;
  memoryGb: number;
  kernel: string;
  node: string;
  postgres: string;
  load: string;
  /** What others had to run in the minute before; near 0 on a quiet machine. */
  busy: number;
};

/** The whole of results.json. */
export type Results = {
  date: string;
  quick: boolean;
  machine: Machine;
  figures: Figures;
  verdicts: Verdict[];
  start: Start;
  memory: Memory;
};

export function describeMachine(postgres: string, load: string, busy: number): Machine {
  const [{ model = '' } = {}, ...others] = cpus();
  return {
    cpu: model,
    cores: others.length + 1,
    memoryGb: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    postgres,
    load,
    busy,
  };
}

/** Every figure: a line per kind of work and contestant. */
export function figureLines(figures: Figures): string[] {
  const header = ['', 'per second', 'p50 ms', 'p99 ms', 'spread', 'CPU µs: own', 'PostgreSQL'];
  const lines = Object.entries(figures).flatMap(([work, of]) => [
    [work],
    ...Object.entries(of).map(([name, figure]) => [
      `  ${name}`,
      rounded(figure.perSecond),
      figure.p50.toFixed(2),
      figure.p99?.toFixed(2) ?? '',
      `${(figure.spread * 100).toFixed(0)} %`,
      figure.ownCpu?.toFixed(0) ?? '',
      figure.databaseCpu?.toFixed(0) ?? '',
    ]),
  ]);
  return columns([header, ...lines]);
}

/** Every target: ours, the peer's, their ratio, what it has to be, whether it is. */
export function verdictLines(verdicts: Verdict[]): string[] {
  return columns(verdictCells(verdicts));
}

function verdictCells(verdicts: Verdict[]): string[][] {
  const header = ['work', 'ours', 'peer', '', 'ratio', 'target', ''];
  const lines = verdicts.map(({ work, ours, peer, at, limit, of, is, than, ratio, met }) => {
    const shown = (value = Number.NaN) => (of ? `${value.toFixed(2)} ms` : `${rounded(value)}/s`);
    const [name, target] = [ours === rows.OURS ? work : `${work}: ${ours}`, `${at} ${limit}`];
    if (ratio === undefined) return [name, '', peer, '', '', target, 'not measured'];
    return [name, shown(is), peer, shown(than), ratio.toFixed(2), target, met ? 'met' : 'NOT MET'];
  });
  return [header, ...lines];
}

/** The parts of the start and the memory, each with its target where it has one. */
export function footprintLines(start: Start, memory: Memory): string[] {
  const { node, imports, connect, schema, ready } = start;
  const parts = Object.entries({ node, imports, connect, schema });
  return [
    `ready ${ready.toFixed(0)} ms after its start (target: 500, ${ready <= 500 ? 'met' : 'NOT MET'})`,
    `  of its parts, alone: ${parts.map(([name, ms]) => `${name} ${ms.toFixed(0)}`).join(', ')}`,
    `resident: idle ${memory.idle.toFixed(0)} MB, under load ${memory.loaded.toFixed(0)} MB, ` +
      `a large table streamed ${memory.streamed.toFixed(0)} MB (${rounded(memory.streamedPerSecond)} rows/s)`,
  ];
}

const BUSY = 0.7; // of a core; beyond it waiting grows faster than work
const RATES = [10_000, 100_000, 1_000_000];

/** What the CPU times say of larger loads: of the service's cores, and of PostgreSQL's. */
function capacityCells(figures: Figures): string[][] {
  const shown = RATES.map((rate) => `${rounded(rate)}/s`);
  const header = ['work', 'a core of the service', 'a core of PostgreSQL', ...shown];
  const lines = [rows.READ, rows.LISTS, rows.CREATE, rows.REPLACE].flatMap((work) => {
    const { ownCpu, databaseCpu } = figures[work]?.[rows.OURS] ?? {};
    if (!ownCpu || !databaseCpu) return [];
    const [own, database] = [perCore(ownCpu), perCore(databaseCpu)];
    const needs = RATES.map((rate) => `${Math.ceil(rate / own)} + ${Math.ceil(rate / database)}`);
    return [[work, `${rounded(own)}/s`, `${rounded(database)}/s`, ...needs]];
  });
  return [header, ...lines];
}

/** Requests per second of one core that is busy as it should be at most. */
function perCore(cpu: number): number {
  return (BUSY * 1_000_000) / cpu;
}

/** README.md with what its marked parts say of these results. */
export function record(readme: string, results: Results): string {
  const { figures, verdicts, start, memory, machine, date } = results;
  const { cpu, cores, memoryGb, node, postgres, load } = machine;
  const parts: Record<string, string[]> = {
    machine: [
      `${date.slice(0, 10)}, ${cores} cores of ${cpu}, ${memoryGb} GB, Linux ${machine.kernel}, ` +
        `Node ${node}, PostgreSQL ${postgres}, load by ${load}; load average of the minute before: ${machine.busy.toFixed(1)}.`,
    ],
    verdicts: markdown(verdictCells(verdicts)),
    footprint: footprintLines(start, memory).map((line) => `- ${line.trim()}`),
    capacity: markdown(capacityCells(figures)),
    figures: ['```', ...figureLines(figures), '```'],
  };
  return Object.entries(parts).reduce((text, [name, lines]) => {
    const place = new RegExp(`(<!-- ${name} -->\\n)[^]*?(<!-- /${name} -->)`);
    if (!place.test(text)) throw new Error(`README.md has no place for ${name}`);
    return text.replace(place, (_, from, to) => `${from}\n${lines.join('\n')}\n\n${to}`);
  }, readme);
}

function markdown([header = [], ...lines]: string[][]): string[] {
  return [header, header.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`);
}

/** Three digits, thousands apart. */
export function rounded(value: number): string {
  const digits = value < 100 ? value : Number(value.toPrecision(3));
  return digits.toLocaleString('en', { maximumFractionDigits: 0 }).replaceAll(',', ' ');
}

/** The first column to the left, the others to the right. */
function columns(lines: string[][]): string[] {
  const width = (at: number) =>
    Math.max(...lines.filter((line) => line.length > 1).map((line) => line[at]?.length ?? 0));
  const widths = (lines[0] ?? []).map((_, at) => width(at));
  return lines.map((line) =>
    line
      .map((cell, at) => (at === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[at] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
}
