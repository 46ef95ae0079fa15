/** Figures as text: on stdout, and between the markers of README.md. */
import { cpus, release } from 'node:os';
import type postgres from 'postgres';
import { hasWrk } from './load.ts';
import { type Figures, median, ratios, type Turns } from './measure.ts';
import { type Memory, MOST } from './memory.ts';
import { WORKS, type Work } from './works.ts';

/** `failures`: by work, why it has no figures. */
export type Run = {
  machine: string;
  figures: Figures;
  failures: Record<string, string>;
  memory?: Memory;
};

/** results.json: the last full run by major version of Node. */
export type Results = Record<string, Run>;

/** `busy`: the load average before the run, near 0 on a quiet machine. */
export async function describeMachine(sql: postgres.Sql, busy = 0): Promise<string> {
  const [date] = new Date().toISOString().split('T');
  const [version] = await sql`show server_version`;
  const [{ model = '' } = {}] = cpus();
  return [
    ...[date, `Node ${process.versions.node}`, `PostgreSQL ${version?.server_version}`],
    ...[`${cpus().length} cores of ${model}`, `Linux ${release()}`],
    ...[
      `load by ${(await hasWrk) ? 'wrk' : 'autocannon'}`,
      `load average before ${busy.toFixed(1)}`,
    ],
  ].join(', ');
}

/** The service's turns, and its ratios to the first peer. */
export function comparison(of: Record<string, Turns> = {}) {
  const [[, ours] = [], [peer, theirs] = []] = Object.entries(of);
  return { ours, peer, ...(ours && theirs && ratios(ours, theirs)) };
}

/** The figures of a work beside its targets; those that miss one are marked. */
export function outcome({ target }: Work, of?: Record<string, Turns>, failure?: string): string {
  const { ours, rate = 0, cpu = 0 } = comparison(of);
  if (!ours) return failure ? '**failed**' : 'not measured';
  const { perSecond = 0 } = target;
  const rows = median(ours.rate);
  if (perSecond > 0) return marked(`${rounded(rows)}/s`, rows >= perSecond);
  const throughput = marked(rate.toFixed(2), rate >= (target.rate ?? 0));
  return `${throughput} · ${marked(cpu.toFixed(2), cpu <= (target.cpu ?? Number.POSITIVE_INFINITY))}`;
}

function marked(text: string, met: boolean): string {
  return met ? text : `**${text} missed**`;
}

/** A line per target, with the outcome of each run. */
function targetLines(results: Results): string[] {
  const runs = Object.values(results);
  const header = [
    'work',
    'compared with',
    'target',
    ...Object.keys(results).map((node) => `Node ${node}`),
  ];
  const works = Object.entries(WORKS).map(([name, work]) => {
    const { rate, cpu, perSecond } = work.target;
    const limits = [
      rate && `≥ ${rate}`,
      cpu && `≤ ${cpu}`,
      perSecond && `≥ ${rounded(perSecond)}/s`,
    ];
    const peer = runs.map(({ figures }) => comparison(figures[name]).peer).find(Boolean) ?? '';
    const outcomes = runs.map(({ figures, failures }) =>
      outcome(work, figures[name], failures[name]),
    );
    return [work.title, peer, limits.filter(Boolean).join(' · '), ...outcomes];
  });
  const memory = Object.entries(MOST).map(([when, most]) => {
    const values = runs.map(({ memory }) => memory?.[when as keyof Memory] ?? Number.NaN);
    const shown = values.map((value) => marked(`${value} MB`, value <= most));
    return [`resident memory, ${when}`, '', `≤ ${most} MB`, ...shown];
  });
  return [header, header.map(() => '---'), ...works, ...memory].map(
    (cells) => `| ${cells.join(' | ')} |`,
  );
}

/** A line per work and contestant: medians, in brackets minima; the service's ratios to it. */
export function figureLines({ figures, failures }: Run): string[] {
  const header = [
    '',
    'per second',
    'service µs',
    'PostgreSQL µs',
    'p50 ms',
    'p99 ms',
    'throughput',
    'CPU',
  ];
  const lines = Object.keys({ ...figures, ...failures }).flatMap((work) => {
    const of = figures[work] ?? {};
    const { ours } = comparison(of);
    const rows = Object.entries(of).map(([name, turns]) => [
      `  ${name}`,
      spread(turns.rate, rounded),
      spread(turns.node, short),
      spread(turns.postgres, short),
      ...[turns.p50, turns.p99].map((ms) => (ms.length > 0 ? median(ms).toFixed(2) : '')),
      ...(ours && ours !== turns ? Object.values(ratios(ours, turns)) : []).map((x) =>
        x.toFixed(2),
      ),
    ]);
    return [[[WORKS[work]?.title, failures[work]].filter(Boolean).join(': ')], ...rows];
  });
  const tables = [header, ...lines].filter((line) => line.length > 1);
  const widths = header.map((_, at) => Math.max(...tables.map((line) => line[at]?.length ?? 0)));
  const pad = (cell: string, at: number) =>
    at === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[at] ?? 0);
  return [header, ...lines].map((line) => line.map(pad).join('  ').trimEnd());
}

function spread(numbers: number[], show: (value: number) => string): string {
  return `${show(median(numbers))} (${show(Math.min(...numbers))})`;
}

function short(value: number): string {
  return value.toFixed(value < 10 ? 1 : 0);
}

/** Three digits, with spaces between thousands. */
function rounded(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString('en').replaceAll(',', ' ');
}

/** README.md with these results between its markers. */
export function record(readme: string, results: Results): string {
  const figures = Object.values(results).flatMap((run) => {
    return ['', `${run.machine}:`, '', '```', ...figureLines(run), '```'];
  });
  const parts = { targets: ['', ...targetLines(results)], figures };
  return Object.entries(parts).reduce((text, [name, lines]) => {
    const place = new RegExp(`(?<=<!-- ${name} -->\n)[^]*?(?=<!-- /${name} -->)`);
    if (!place.test(text)) throw new Error(`README.md has no markers for ${name}`);
    return text.replace(place, () => `${lines.join('\n')}\n\n`);
  }, readme);
}

/** With each list on one line, as the formatter has it. */
export function toJson(results: Results): string {
  const onOneLine = (list: string) =>
    list.replace(/\s+/g, ' ').replace('[ ', '[').replace(' ]', ']');
  return `${JSON.stringify(results, null, 2).replace(/\[[^[\]]*\]/g, onOneLine)}\n`;
}
