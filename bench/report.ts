/** Figures as text: the table on stdout, and what results.json says of the machine. */
import { cpus, release, totalmem } from 'node:os';
import type { Memory, Start } from './footprint.ts';
import type { Figures } from './measure.ts';
import { OURS, type Verdict } from './targets.ts';

export type Machine = {
  cpu: string;
  cores: number;
  memoryGb: number;
  kernel: string;
  node: string;
  postgres: string;
  load: string;
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

export function describeMachine(postgres: string, load: string): Machine {
  const [{ model = '' } = {}, ...others] = cpus();
  return {
    cpu: model,
    cores: others.length + 1,
    memoryGb: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    postgres,
    load,
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
      figure.p99.toFixed(2),
      `${(figure.spread * 100).toFixed(0)} %`,
      figure.ownCpu?.toFixed(0) ?? '',
      figure.databaseCpu?.toFixed(0) ?? '',
    ]),
  ]);
  return columns([header, ...lines]);
}

/** Every target: ours, the peer's, their ratio, what it has to be, whether it is. */
export function verdictLines(verdicts: Verdict[]): string[] {
  const header = ['work', 'ours', 'peer', '', 'ratio', 'target', ''];
  const lines = verdicts.map(({ work, ours, peer, at, limit, of, is, than, ratio, met }) => {
    const unit = of ? ' ms' : '/s';
    const shown = (value = Number.NaN) => (of ? value.toFixed(2) : rounded(value)) + unit;
    const target = `${at} ${limit}`;
    const name = ours === OURS ? work : `${work}: ${ours}`;
    if (ratio === undefined) return [name, '', peer, '', '', target, 'not measured'];
    return [name, shown(is), peer, shown(than), ratio.toFixed(2), target, met ? 'met' : 'NOT MET'];
  });
  return columns([header, ...lines]);
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
